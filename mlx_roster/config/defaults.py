"""Values for request fields that a request leaves out: for all models, one model, an adapter or an alias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from mlx_roster.config.names import Name
from mlx_roster.config.settings import Settings
from mlx_roster.config.values import Names

_MAX = 2**31 - 1
_Count = Annotated[int, Field(ge=0, le=_MAX)]
_Stop = Annotated[str, Field(min_length=1)]


class Defaults(Settings):
    """Values for request fields that a request leaves out. None: nothing is said here."""

    max_tokens: int | None = Field(default=None, ge=1, le=_MAX, description="Tokens to generate at most.")
    temperature: float | None = Field(default=None, ge=0, description="0 always takes the likeliest token.")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Take from the likeliest tokens up to this sum of probabilities; 1 is off.",
    )
    top_k: _Count | None = Field(default=None, description="Take from so many of the likeliest tokens; 0 is off.")
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Take from tokens at least this likely, relative to the likeliest; 0 is off.",
    )
    xtc_probability: float | None = Field(
        default=None, ge=0, le=1, description="How often the likeliest tokens are left out; 0 is off."
    )
    xtc_threshold: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Tokens at least this likely are then left out, all but the least likely of them.",
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, description="Above 1, tokens that were there are less likely; 1 is off."
    )
    repetition_context_size: _Count | None = Field(
        default=None, description="It looks at the last so many tokens; at 0 it is off."
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken from the logits of tokens that were there; 0 is off."
    )
    presence_context_size: _Count | None = Field(
        default=None, description="It looks at the last so many tokens; at 0 it is off."
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken for each time that a token was there; 0 is off."
    )
    frequency_context_size: _Count | None = Field(
        default=None, description="It looks at the last so many tokens; at 0 it is off."
    )
    stop: Annotated[tuple[_Stop, ...], Field(strict=False)] | None = Field(
        default=None, description="Strings that end an answer, and are not part of it."
    )

    def over(self, other: Defaults) -> Defaults:
        """What this says and, where it says nothing, what `other` says."""
        said = {name: value for name, value in self if value is not None}
        return other.model_copy(update=said) if said else other


_NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(Names)
_NOTHING = Defaults()


def _aliases(value: object, validate: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, Mapping):
        return validate(value)
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("aliases_type", "Input should be a list, or a mapping from names to defaults")
    names = _NAMES.validate_python(value)
    if len(names) > len(set(names)):
        # `names.clashes` says it with more words.
        raise PydanticCustomError("clash", "a name is given twice")
    return dict.fromkeys(names, _NOTHING)


def _empty(value: object) -> object:
    return _NOTHING if value is None else value


Aliases = Annotated[
    Mapping[Name, Annotated[Defaults, BeforeValidator(_empty, json_schema_input_type=Defaults | None)]],
    WrapValidator(_aliases, json_schema_input_type=Names | Mapping[Name, Defaults | None]),
]
