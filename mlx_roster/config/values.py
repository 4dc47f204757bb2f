"""The kinds of values that a roster file has, each checked and brought into its final form."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from mlx_roster.config.names import Name
from mlx_roster.config.units import (
    DURATION_PATTERN,
    MULTIPLE_PATTERN,
    PERCENTAGE_PATTERN,
    SIZE_PATTERN,
    Multiple,
    Share,
    format_duration,
    parse_duration,
    parse_lifetime,
    parse_multiple,
    parse_percentage,
    parse_size,
)

_SizeText = Annotated[str, Field(pattern=SIZE_PATTERN)]
_PercentageText = Annotated[str, Field(pattern=PERCENTAGE_PATTERN)]
_ByteCount = Annotated[int, Field(ge=1)]
_ByteCountOrNone = Annotated[int, Field(ge=0)]
_DurationText = Annotated[str, Field(pattern=DURATION_PATTERN)]
_MultipleText = Annotated[str, Field(pattern=MULTIPLE_PATTERN)]
_Seconds = Annotated[float, Field(ge=0)]
_Moment = Annotated[float, Field(gt=0)]
#: Below so many seconds a busy machine would look like one that hangs: workers say once a second how they are.
SHORTEST_STALL = 5
_Stall = Annotated[float, Field(ge=SHORTEST_STALL)]
# Without "/" or "*" it would match nothing. As `fnmatch` reads it.
GLOB_PATTERN = r"^[A-Za-z0-9_.?\[\]!-]*[/*][A-Za-z0-9_./*?\[\]!-]*$"
# A scheme of its own is what desktop applications have.
ORIGIN_PATTERN = r"^(\*|[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~\[\]:-]+)$"
_OriginText = Annotated[str, Field(pattern=ORIGIN_PATTERN)]
HOST_PATTERN = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
_HostText = Annotated[str, Field(pattern=HOST_PATTERN)]
_GlobText = Annotated[str, Field(pattern=GLOB_PATTERN)]


def _budget(value: object) -> Share | int:
    if isinstance(value, Share):
        return value
    if isinstance(value, str) and value.endswith("%"):
        share = parse_percentage(value)
        if share.fraction == 0:
            raise ValueError("should be more than 0%")
        return share
    amount = parse_size(value)
    if amount < 1:
        raise ValueError("should be at least 1 byte")
    return amount


def _written(budget: Share | int) -> str | int:
    return f"{budget.fraction * 100:g}%" if isinstance(budget, Share) else budget


def _residency(value: object) -> Multiple | float:
    if isinstance(value, Multiple):
        return value
    if isinstance(value, str) and value.endswith("x"):
        return parse_multiple(value)
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or a multiple of the time that loading takes, such as 3x") from error


def _spoken(duration: Multiple | float) -> str:
    return f"{duration.factor:g}x" if isinstance(duration, Multiple) else format_duration(duration)


def _fraction(value: object) -> float:
    return parse_percentage(value).fraction


def _patience(value: object) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError("should be more than 0")
    return seconds


def _stall(value: object) -> float:
    seconds = parse_duration(value)
    if seconds < SHORTEST_STALL:
        raise ValueError(f"should be {SHORTEST_STALL}s or more: in less, a busy machine would be taken for a hang")
    return seconds


def _glob(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if re.fullmatch(GLOB_PATTERN, value) is None:
        raise ValueError("should be a glob of Hub repo ids, which are org/name: mlx-community/* or, for all of them, *")
    return value


def _origin(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if value == "null" or re.fullmatch(ORIGIN_PATTERN, value) is None:
        raise ValueError('should be an exact origin, as https://app.example.com or http://localhost:3000, or "*"')
    origin = value.lower()
    for scheme, port in (("http", ":80"), ("https", ":443")):
        if origin.startswith(f"{scheme}://"):
            # Which no browser says.
            origin = origin.removesuffix(port)
    return origin


def _host_name(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if re.fullmatch(HOST_PATTERN, value) is None:
        raise ValueError("should be a host name without a port, as llm.example.com")
    return value.lower()


Size = Annotated[_ByteCount, BeforeValidator(parse_size, json_schema_input_type=_ByteCount | _SizeText)]
SizeOrNone = Annotated[
    _ByteCountOrNone, BeforeValidator(parse_size, json_schema_input_type=_ByteCountOrNone | _SizeText)
]
Budget = Annotated[
    Share | int,
    PlainValidator(_budget, json_schema_input_type=_ByteCount | _SizeText | _PercentageText),
    PlainSerializer(_written),
]
Fraction = Annotated[float, PlainValidator(_fraction, json_schema_input_type=_PercentageText)]
Duration = Annotated[
    float,
    PlainValidator(parse_duration, json_schema_input_type=_Seconds | _DurationText),
    PlainSerializer(_spoken),
]
Patience = Annotated[
    float,
    PlainValidator(_patience, json_schema_input_type=_Moment | _DurationText),
    PlainSerializer(_spoken),
]
Stall = Annotated[
    float,
    PlainValidator(_stall, json_schema_input_type=_Stall | _DurationText),
    PlainSerializer(_spoken),
]
Lifetime = Annotated[
    float,
    PlainValidator(parse_lifetime, json_schema_input_type=_Seconds | _DurationText | Literal["never"]),
    PlainSerializer(_spoken),
]
Residency = Annotated[
    Multiple | float,
    PlainValidator(_residency, json_schema_input_type=_Seconds | _DurationText | _MultipleText),
    PlainSerializer(_spoken),
]
Glob = Annotated[str, PlainValidator(_glob, json_schema_input_type=_GlobText)]
Origin = Annotated[str, PlainValidator(_origin, json_schema_input_type=_OriginText)]
HostName = Annotated[str, PlainValidator(_host_name, json_schema_input_type=_HostText)]
# YAML has lists only, and pydantic's strict tuples take nothing but tuples.
Names = Annotated[tuple[Name, ...], Field(strict=False)]
