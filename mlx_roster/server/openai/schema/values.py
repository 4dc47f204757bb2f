"""What the parts of a request are made of, and how large each may be.

Checking a body happens on the event loop: a list fails at its first bad item, and none is long without end, or
collecting a million complaints would hold up everybody else's tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mlx_roster.config.units import parse_lifetime
from mlx_roster.server.openai.fields import shown

# What goes to a worker goes over the wire as msgpack, whose integers have 64 bits, and then through recursive code.
MAX_DEPTH = 64
MAX_INT = 2**63 - 1
MAX_COUNT = 2**31 - 1
MAX_STOPS = 1024
#: Of an object that takes no others than its own.
MAX_FIELDS = 128
# Each character of an answer may be compared with all of them, between two steps of everybody's.
MAX_STOP = 512
MAX_STOPS_TEXT = 64 * 1024
#: A schema's text: what the compiler of grammars takes in any case, without the way there.
MAX_SCHEMA = 64 * 1024

#: What OpenAI takes for a function, and for a schema.
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Strict(BaseModel):
    """JSON types as they are: no number from a string, no integer from 3.0 or true."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        # Of each that is not known there would be a complaint.
        if isinstance(value, dict) and len(value) > MAX_FIELDS and cls.model_config["extra"] == "forbid":
            raise PydanticCustomError("too_many", "must have at most {entries} entries", {"entries": MAX_FIELDS})
        return value


def schema_size(schema: dict[str, Any]) -> int:
    """Bytes of a schema that is plain."""
    return len(msgspec.json.encode(schema))


Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]


def text_or_list(value: object) -> str | None:
    """Which of two forms was meant. In angle brackets: `parse` leaves such names out of a field's path."""
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def at_most(entries: int) -> BeforeValidator:
    """An object of no more than so many: looked at before each of them is."""

    def check(value: object) -> object:
        if isinstance(value, Collection) and len(value) > entries:
            raise PydanticCustomError("too_many", "must have at most {entries} entries", {"entries": entries})
        return value

    return BeforeValidator(check)


def check_plain(value: object, name: str) -> None:
    """What is passed on as it was sent must survive the way. Raises PydanticCustomError."""
    _check_plain(value, name, 0)


def _check_plain(value: object, name: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise PydanticCustomError("too_deep", "has a field {name} that is nested too deeply", {"name": shown([name])})
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_plain(item, name, depth + 1)
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise PydanticCustomError("too_large", "has a number beyond 64 bits in {name}", {"name": shown([name])})


def plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """A validator: `check_plain` on each of an object's fields."""
    for name, value in fields.items():
        check_plain(value, name)
    return fields


def _in_all(stops: list[str]) -> list[str]:
    if sum(map(len, stops)) > MAX_STOPS_TEXT:
        raise PydanticCustomError("too_much", "must have at most {most} characters in all", {"most": MAX_STOPS_TEXT})
    return stops


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]
Stops = Annotated[
    Annotated[Stop, Tag("<text>")]
    | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS), AfterValidator(_in_all), Tag("<list>")],
    Discriminator(
        text_or_list,
        custom_error_type="stop_type",
        custom_error_message="must be a string or an array of strings",
    ),
]


def _lifetime(value: object) -> float:
    try:
        return parse_lifetime(value)
    except (ValueError, OverflowError) as error:
        # The roster's words are for YAML.
        raise PydanticCustomError(
            "lifetime", 'must be a number of seconds from 0, a duration such as "90s", "15m" or "1.5h", or "never"'
        ) from error


Lifetime = Annotated[
    float,
    PlainValidator(_lifetime),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
