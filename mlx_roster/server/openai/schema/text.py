"""The body of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import ConfigDict, Discriminator, Field, Tag

from mlx_roster.core import Text, Tokens
from mlx_roster.errors import InvalidRequest, UnsupportedParameter
from mlx_roster.server.openai.logprobs import ScoreForm
from mlx_roster.server.openai.schema.generation import GenerationRequest
from mlx_roster.server.openai.schema.values import MAX_COUNT, Count, CountOrZero

MAX_PROMPTS = 128


def _prompt_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "<lists>" if isinstance(first, list) else "<texts>" if isinstance(first, str) else "<ids>"


Ids = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(fail_fast=True, min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS), Tag("<lists>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, an array of strings, an array of token ids or an array of such arrays",
    ),
]


class TextRequest(GenerationRequest):
    """One text or several, to be continued as they stand."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "qwen", "prompt": "Once upon a time", "max_tokens": 20}]}
    )

    prompt: Prompt = Field(description="A text or token ids, or several of them.")
    max_tokens: CountOrZero | None = Field(
        default=None, description="Tokens to generate at most; 0 only with echo; 100 if nobody says anything."
    )
    max_completion_tokens: CountOrZero | None = Field(default=None, description="Another name of max_tokens.")
    logprobs: Annotated[int, Field(ge=0, le=10)] | None = Field(
        default=None, description="Say log-probabilities, and those of so many of the likeliest tokens."
    )
    echo: bool | None = Field(
        default=None, description="Begin the answer with the prompt; with logprobs, its tokens are scored too."
    )
    best_of: Count | None = Field(default=None, description="Must be n.")

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def score_form(self) -> ScoreForm | None:
        return None if self.logprobs is None else "text"

    @property
    def echoed(self) -> bool:
        return bool(self.echo)

    def check(self, n_limit: int) -> None:
        super().check(n_limit)
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0 and not self.echo:
                raise InvalidRequest(f"{name} must be at least 1, unless echo is true", param=name)
        if self.best_of is not None and self.best_of != self.choices:
            raise UnsupportedParameter("best_of is not supported, unless it is the same as n", param="best_of")

    @cached_property
    def prompts(self) -> Sequence[Text | Tokens]:
        many = [self.prompt] if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else self.prompt
        return [Text(one) if isinstance(one, str) else Tokens(one) for one in many]
