"""What the bodies of both generating routes have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import msgspec
from pydantic import Field

from mlx_roster.core import Capabilities, Chat, Generation, Text, Tokens, Tools
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.logprobs import ScoreForm
from mlx_roster.server.openai.schema.formats import ResponseFormat, wanted
from mlx_roster.server.openai.schema.sampling import SamplingRequest
from mlx_roster.server.openai.schema.values import Count, Lifetime, Stops, Strict

#: Where neither the request nor the roster says anything.
DEFAULT_MAX_TOKENS = 100

MAX_DRAFTED = 16


class StreamOptions(Strict):
    include_usage: bool | None = Field(default=None, description="End a stream with a chunk that has the usage.")


class GenerationRequest(SamplingRequest):
    """What both routes take. Fields that are None were left out."""

    model: str | None = Field(
        default=None, description="An id or alias of GET /v1/models; the default model if left out.", examples=["qwen"]
    )
    adapters: str | None = Field(default=None, description="An adapter of the model.")
    max_tokens: Count | None = Field(
        default=None, description="Tokens to generate at most; 100 if nobody says anything."
    )
    max_completion_tokens: Count | None = Field(default=None, description="Another name of max_tokens.")
    n: Count | None = Field(default=None, description="So many answers to each prompt.")
    stop: Stops | None = Field(default=None, description="Text that ends the answer, and is no part of it.")
    stream: bool | None = Field(default=None, description="Answer with server-sent events, token by token.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    response_format: ResponseFormat | None = Field(default=None, description="What form the answer must have.")
    draft_model: str | None = Field(default=None, description="One of the model's draft models, by its name.")
    num_draft_tokens: Annotated[int, Field(ge=0, le=MAX_DRAFTED)] | None = Field(
        default=None, description="How many tokens are drafted at a time; 0 is no drafting."
    )
    #: In seconds; infinite for "never".
    keep_alive: Lifetime | None = Field(
        default=None,
        description='How long the model stays loaded after this request: seconds, "15m", "never".',
        examples=["15m"],
    )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def alternatives(self) -> int | None:
        """How many of the likeliest tokens are said of each token; None says no log-probabilities at all."""
        raise NotImplementedError

    @property
    def score_form(self) -> ScoreForm | None:
        """How they are said."""
        raise NotImplementedError

    @property
    def echoed(self) -> bool:
        return False

    @cached_property
    def tools_offered(self) -> Tools | None:
        return None

    def prepare(self) -> None:
        """Make what takes long and is needed later. May be called on any thread, before all else."""
        self.prompts  # noqa: B018 - it is kept
        self.tools_offered  # noqa: B018

    def unheard(self, capabilities: Capabilities) -> list[str]:
        """Fields, or parts of them, that this model has no use for."""
        return []

    def check(self, n_limit: int) -> None:
        """What no single field can say. Raises InvalidRequest."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(
                "max_completion_tokens and max_tokens are one limit and must not differ", param="max_completion_tokens"
            )
        if self.choices > n_limit:
            raise InvalidRequest(f"n must be at most {n_limit}", param="n")
        if (limit := self._limit) is not None:
            self._check_minimum(limit)
        self._check_ends(grammar="response_format" if wanted(self.response_format) is not None else None)

    def _check_ends(self, grammar: str | None) -> None:
        """A grammar ends where it ends: `grammar` is the field that asks for one."""
        for name in ("min_tokens", "ignore_eos"):
            if grammar is not None and getattr(self, name):
                raise InvalidRequest(f"{name} does not go together with {grammar}, which decides the end", param=name)

    def _check_minimum(self, limit: int) -> None:
        if (self.min_tokens or 0) > limit:
            raise InvalidRequest(f"min_tokens must be at most max_tokens, which is {limit}", param="min_tokens")

    @property
    def _limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @cached_property
    def prompts(self) -> Sequence[Chat | Text | Tokens]:
        """Each has `choices` answers."""
        raise NotImplementedError

    def generations(self, defaults: Mapping[str, Any]) -> list[Generation]:
        """What to submit, one for each prompt: the request's own values, then `defaults`, then the built-in ones.

        Raises InvalidRequest where the defaults do not fit the request.
        """
        limit = self._limit
        if limit is None:
            limit = int(defaults.get("max_tokens", DEFAULT_MAX_TOKENS))
            self._check_minimum(limit)
        stop = defaults.get("stop", ()) if self.stop is None else self.stop
        first, *others = self.prompts
        generation = Generation(
            prompt=first,
            max_tokens=limit,
            sampling=self.sampling(defaults),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            n=self.choices,
            logprobs=self.alternatives,
            echo=self.echoed,
            format=wanted(self.response_format),
            tools=self.tools_offered,
            draft=self.draft_model,
            draft_tokens=self.num_draft_tokens,
        )
        return [
            generation,
            *(msgspec.structs.replace(generation, prompt=prompt, rank=rank) for rank, prompt in enumerate(others, 1)),
        ]
