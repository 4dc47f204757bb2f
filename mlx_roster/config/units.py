"""Amounts as people write them in a roster file: `48GiB`, `75%`, `15m`, `3x`. Parsers raise ValueError."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

#: Also what the JSON Schema says, so that an editor and `load` agree. Lengths are bounded: Decimal's cost is not.
SIZE_PATTERN = r"^[0-9]{1,18}(\.[0-9]{1,9})? ?([kKmMgGtT][iI]?)?[bB]$"
PERCENTAGE_PATTERN = r"^[0-9]{1,3}(\.[0-9]{1,9})? ?%$"
DURATION_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,9})? ?(ms|s|m|h|d)$"
MULTIPLE_PATTERN = r"^[0-9]{1,3}(\.[0-9]{1,9})? ?x$"

#: What a duration is called that has no end.
NEVER = "never"

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_LONGEST = 100 * 365 * 86400.0
_SIZE = re.compile(SIZE_PATTERN)
_PERCENTAGE = re.compile(PERCENTAGE_PATTERN)
_DURATION = re.compile(DURATION_PATTERN)
_MULTIPLE = re.compile(MULTIPLE_PATTERN)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of something whose size is not known until the machine is asked: `Share(0.75)` is 75% of it."""

    fraction: float

    def of(self, total: int) -> int:
        return int(total * self.fraction)


@dataclass(frozen=True, slots=True)
class Multiple:
    """So many times something that is measured later: `Multiple(3)` is 3x."""

    factor: float


def parse_size(value: object) -> int:
    """Bytes, from `8MiB`, `1.5GB` or a plain int."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or _SIZE.fullmatch(value) is None:
        raise ValueError("should be a size such as 512MiB, 48GiB or 1.5GB, or a whole number of bytes")
    number = value.rstrip("bBiIkKmMgGtT ")
    return int(Decimal(number) * _UNITS[value[len(number) :].strip().lower()])


def parse_percentage(value: object) -> Share:
    """A share of up to 100%, from `75%`."""
    if not isinstance(value, str) or _PERCENTAGE.fullmatch(value) is None:
        raise ValueError("should be a percentage such as 10%")
    percent = Decimal(value.rstrip("% "))
    if percent > 100:
        raise ValueError("should be 100% at most")
    return Share(float(percent / 100))


def parse_duration(value: object) -> float:
    """Seconds, from `90s`, `15m`, `1.5h` or a plain number of seconds; at most a hundred years."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(min(value, _LONGEST))
    if not isinstance(value, str) or (found := _DURATION.fullmatch(value)) is None:
        raise ValueError("should be a duration such as 90s, 15m or 1.5h, or a number of seconds")
    return min(float(Decimal(value[: found.start(2)].rstrip()) * _SECONDS[found[2]]), _LONGEST)


def parse_lifetime(value: object) -> float:
    """Seconds, as `parse_duration`, or infinity for `never`."""
    if value == NEVER or (isinstance(value, float) and math.isinf(value) and value > 0):
        return math.inf
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "{NEVER}"') from error


def parse_multiple(value: object) -> Multiple:
    """`3x`."""
    if not isinstance(value, str) or _MULTIPLE.fullmatch(value) is None:
        raise ValueError("should be a multiple such as 3x")
    return Multiple(float(value.rstrip("x ")))


def format_duration(seconds: float) -> str:
    """`seconds` as the roster file has them, in the largest unit that is whole: `15m`, `90s`, `1.5s`, `250ms`, `never`.

    `parse_lifetime` makes the same of it again, to the nanosecond.
    """
    if math.isinf(seconds):
        return NEVER
    for unit in ("d", "h", "m", "s"):
        count = seconds / float(_SECONDS[unit])
        if count.is_integer() and seconds:
            return f"{count:.0f}{unit}"
    number, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{number:.9f}".rstrip("0").rstrip(".") + unit if seconds else "0s"


def format_bytes(count: int) -> str:
    """`count` for people, with one decimal at most: `18 GiB`, `12.3 MiB`, `512 B`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # 1023.95 would be rounded up to 1024 of the smaller unit.
        if abs(amount) < 1023.95:
            return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
        amount /= 1024
    return f"{amount:.1f}".removesuffix(".0") + " TiB"
