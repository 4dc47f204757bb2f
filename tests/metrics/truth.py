"""What a client knows of what it has done, to be compared with what the server has counted."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import httpx2

from tests.metrics.scraped import families

#: What no client can know: how many steps its tokens took, and how many of them came together with the first.
UNKNOWN = ("mlx_roster_engine_steps_total", "mlx_roster_inter_token_latency_seconds_count")

#: What is not known of an answer that was cut.
COMPUTED = frozenset(
    f"mlx_roster_{name}"
    for name in (
        "generation_tokens_total",
        "time_to_first_token_seconds_count",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    )
)

Key = tuple[str, tuple[tuple[str, str], ...]]


def key(name: str, labels: Mapping[str, str]) -> Key:
    return f"mlx_roster_{name}", tuple(sorted(labels.items()))


class Slots:
    """A bank of slots, as docs/adapters.md has it: the least recently used makes room."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.there: OrderedDict[str, None] = OrderedDict()

    def use(self, adapter: str) -> tuple[bool, bool]:
        """Whether it is put into a slot for this, and whether another is taken out of it."""
        if adapter in self.there:
            self.there.move_to_end(adapter)
            return False, False
        full = len(self.there) == self.count
        if full:
            self.there.popitem(last=False)
        self.there[adapter] = None
        return True, full


class Truth:
    """For one client after the other, over a server that has room for one model at a time.

    `slots` is how many adapters of each model are resident.
    """

    def __init__(self, slots: Mapping[str, int]) -> None:
        self.counts: Counter[Key] = Counter()
        self.resident: str | None = None
        self._slots = slots
        self._bank = Slots(0)
        self._lost: set[str] = set()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        if amount:
            self.counts[key(name, labels)] += amount

    def leased(self, model: str, adapter: str | None = None, *, request: bool = True) -> None:
        """A request got its model, which is loaded for it where it is not resident."""
        if request:
            self.add("request_queue_time_seconds_count", model=model)
        if self.resident != model:
            self.evicted("room")
            self.add("loads_total", model=model, result="ok")
            self.add("load_duration_seconds_count", model=model)
            if model in self._lost:
                self._lost.discard(model)
                self.add("worker_restarts_total", model=model)
            self.resident, self._bank = model, Slots(self._slots.get(model, 0))
        if adapter is not None:
            put, out = self._bank.use(adapter)
            self.add("lora_loads_total", put, model=model)
            self.add("lora_evictions_total", out, model=model)

    def evicted(self, reason: str) -> None:
        if self.resident is not None:
            self.add("evictions_total", model=self.resident, reason=reason)
            if reason == "crash":
                self.add("worker_crashes_total", model=self.resident, reason=reason)
                self._lost.add(self.resident)
        self.resident = None

    def failed(self, model: str, code: str) -> None:
        """Its load has failed, for one request."""
        self.evicted("room")
        self.add("loads_total", model=model, result="failed")
        self.add("refusals_total", model=model, code=code)

    def ended(
        self,
        status: int,
        *,
        operation: str = "chat",
        model: str = "other",
        adapter: str | None = None,
        code: str | None = None,
        tokens: int = 0,
    ) -> None:
        """A request is over that was not served whole, after so many `tokens`."""
        both = {"model": model, "adapter": adapter or ""}
        self.add("requests_total", operation=operation, status=str(status), **both)
        if code is not None:
            self.add("request_errors_total", model=model, code=code)
        if tokens:
            self.add("generation_tokens_total", tokens, **both)
            self.add("time_to_first_token_seconds_count", model=model)

    def served(
        self, usage: Mapping[str, Any], finishes: list[str], operation: str, model: str, adapter: str | None
    ) -> None:
        """One was, and the answer said so."""
        both = {"model": model, "adapter": adapter or ""}
        details, prompt = usage.get("completion_tokens_details") or {}, usage.get("prompt_tokens_details") or {}
        accepted = details.get("accepted_prediction_tokens") or 0
        cached = prompt.get("cached_tokens") or 0
        self.ended(200, operation=operation, model=model, adapter=adapter, tokens=usage["completion_tokens"])
        for finish in finishes:
            self.add("request_success_total", finished_reason=finish, **both)
        self.add("prompt_tokens_total", usage["prompt_tokens"], **both)
        self.add("prompt_tokens_cached_total", cached, **both)
        self.add("reasoning_tokens_total", details.get("reasoning_tokens") or 0, **both)
        self.add("spec_decode_num_accepted_tokens_total", accepted, **both)
        drafted = accepted + (details.get("rejected_prediction_tokens") or 0)
        self.add("spec_decode_num_draft_tokens_total", drafted, **both)
        self.add("prefix_cache_queries_total", usage["prompt_tokens"], model=model)
        self.add("prefix_cache_hits_total", cached, model=model)
        self.add("e2e_request_latency_seconds_count", model=model)
        if usage["completion_tokens"] > len(finishes):
            self.add("request_time_per_output_token_seconds_count", model=model)

    def compare(self, scrape: Callable[[], str], patience: float, vague: Collection[str] = ()) -> None:
        """Fails where the server has not counted the same, once it has counted the same requests.

        Of `vague` models, some were cut: then the client does not know what was computed.
        """
        deadline, known = time.monotonic() + patience, _split(self.counts)
        while (found := counted(scrape()))["requests"] != known["requests"]:
            assert time.monotonic() < deadline, (found["requests"] - known["requests"], found["requests"])
        differ = {
            name: (found["rest"][name], known["rest"][name])
            for name in found["rest"] | known["rest"]
            if found["rest"][name] != known["rest"][name]
            and not (name[0] in COMPUTED and dict(name[1])["model"] in vague)
        }
        assert differ == {}, "what was counted, and what is true"


class Operator:
    """Somebody who loads and unloads over the same server, and whose requests are counted, too."""

    def __init__(self, http: httpx2.Client, truth: Truth) -> None:
        self._http = http
        self._truth = truth

    def loads(self, model: str) -> None:
        """Past a cooldown."""
        self._act(model, "load")
        self._truth.leased(model, request=False)

    def unloads(self) -> None:
        """What is there, if anything is."""
        model = self._truth.resident
        if model is not None:
            self._act(model, "unload?wait=true")
            self._truth.evicted("operator")

    def _act(self, model: str, verb: str) -> None:
        reply = self._http.post(f"/admin/models/{model}/{verb}")
        assert reply.status_code == 200, reply.text
        self._truth.add("requests_total", operation="other", status="200", model=model, adapter="")


def counted(body: str) -> dict[str, Counter[Key]]:
    """All that only ever grows, but for what says nothing, and for the scrapes themselves."""
    found: Counter[Key] = Counter()
    for family in families(body):
        for name, labels, value in family.series:
            grows = family.kind == "counter" or name.endswith("_count")
            if value and grows and family.name.startswith("mlx_roster_") and name not in UNKNOWN:
                found[name, tuple(sorted(labels.items()))] = round(value)
    del found[key("requests_total", {"operation": "other", "model": "", "adapter": "", "status": "200"})]
    return _split(found)


def _split(counts: Counter[Key]) -> dict[str, Counter[Key]]:
    requests = {one: count for one, count in counts.items() if one[0] == "mlx_roster_requests_total"}
    return {"requests": Counter(requests), "rest": Counter(counts) - Counter(requests)}
