"""Amounts as people write them in a roster file: `8MiB`, `48GiB`, `75%`. Parsers raise ValueError."""

from __future__ import annotations

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

_SIZE = re.compile(SIZE_PATTERN)
_PERCENTAGE = re.compile(PERCENTAGE_PATTERN)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of something whose size is not known until the machine is asked: `Share(0.75)` is 75% of it."""

    fraction: float

    def of(self, total: int) -> int:
        return int(total * self.fraction)


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


def format_bytes(count: int) -> str:
    """`count` for people, with one decimal at most: `18 GiB`, `12.3 MiB`, `512 B`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # 1023.95 would be rounded up to 1024 of the smaller unit.
        if abs(amount) < 1023.95:
            return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
        amount /= 1024
    return f"{amount:.1f}".removesuffix(".0") + " TiB"
