"""What is counted of each request, once it is over."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from mlx_roster.metrics.account import Account
from mlx_roster.metrics.names import Names
from mlx_roster.metrics.series import EACH_TOKEN, FIRST_TOKEN, REQUEST, counter, histogram

#: Of tokens, by what an Account calls them.
_TOKENS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts, those from the prompt cache included."),
    "cached_tokens": ("prompt_tokens_cached", "Tokens of prompts that the prompt cache had."),
    "completion_tokens": ("generation_tokens", "Tokens that were generated."),
    "reasoning_tokens": ("reasoning_tokens", "Tokens that were generated before the answer itself."),
    "accepted_tokens": ("spec_decode_num_accepted_tokens", "Tokens of a draft model that were right."),
    "drafted": ("spec_decode_num_draft_tokens", "Tokens that a draft model has drafted."),
}


class Requests:
    """Counters and histograms over Accounts. Histograms are by model only: each series of one is some twenty."""

    def __init__(self, registry: CollectorRegistry, names: Names) -> None:
        both = ("model", "adapter")
        self._names = names
        self._ended = counter(
            registry,
            "requests",
            "Requests that are over, by HTTP status; 499: the client had left.",
            "operation",
            *both,
            "status",
        )
        self._errors = counter(registry, "request_errors", "Requests that ended with an error.", "model", "code")
        self._finished = counter(
            registry, "request_success", "Choices that came to their end.", *both, "finished_reason"
        )
        self._tokens: dict[str, Counter] = {
            field: counter(registry, name, text, *both) for field, (name, text) in _TOKENS.items()
        }
        self._first = histogram(
            registry,
            "time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting and loading included.",
            FIRST_TOKEN,
            "model",
        )
        self._gap = histogram(
            registry,
            "inter_token_latency_seconds",
            "From one token of a choice to the next.",
            EACH_TOKEN,
            "model",
        )
        self._each = histogram(
            registry,
            "request_time_per_output_token_seconds",
            "The mean time from token to token of each request that was served whole.",
            EACH_TOKEN,
            "model",
        )
        self._whole = histogram(
            registry,
            "e2e_request_latency_seconds",
            "From the arrival to the end of each request that was served whole.",
            REQUEST,
            "model",
        )

    def ended(self, account: Account) -> None:
        """Count one."""
        labels = self._labels(account)
        operation = account.operation or "other"
        self._ended.labels(operation, *labels, str(account.status)).inc()
        if account.code is not None:
            self._errors.labels(labels[0], account.code).inc()
        for finish in account.finishes:
            self._finished.labels(*labels, finish).inc()
        for field, amount in _amounts(account).items():
            if amount:
                self._tokens[field].labels(*labels).inc(amount)
        if account.first is not None:
            self._first.labels(labels[0]).observe(max(0.0, account.first - account.started))
        if account.finishes and account.code is None and account.status == 200:
            self._served(account, labels[0])

    def gaps(self, model: str) -> Callable[[float], None]:
        """Where the times between a model's tokens go. Good for one request: the model may lose its series."""
        return self._gap.labels(self._names.model(model)).observe

    def remove(self, **labels: str) -> None:
        """The series with these labels are not wanted any more."""
        by_model = [self._first, self._gap, self._each, self._whole, self._errors]
        metrics = [self._ended, self._finished, *self._tokens.values()]
        for metric in metrics if "adapter" in labels else [*metrics, *by_model]:
            metric.remove_by_labels(labels)

    def _labels(self, account: Account) -> tuple[str, str]:
        if account.model is None and account.operation is None:
            return "", ""
        return self._names.both(account.model, account.adapter, real=account.first is not None)

    def _served(self, account: Account, model: str) -> None:
        if account.ended is not None:
            self._whole.labels(model).observe(max(0.0, account.ended - account.started))
        if account.further_tokens:
            self._each.labels(model).observe(account.generating / account.further_tokens)


def _amounts(account: Account) -> dict[str, int]:
    return {
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "completion_tokens": account.completion_tokens,
        "reasoning_tokens": account.reasoning_tokens,
        "accepted_tokens": account.accepted_tokens,
        "drafted": account.accepted_tokens + account.rejected_tokens,
    }
