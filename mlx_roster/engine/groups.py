"""Some of the rows of a batch, for what only they need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Self

import mlx.core as mx


class Group:
    """Rows of an array (N, …), by their positions in it, rising. Nothing is copied for a group that is all of them."""

    def __init__(self, members: Sequence[int], size: int) -> None:
        self.members = list(members)
        self._size = size

    @classmethod
    def where(cls, flags: Sequence[bool]) -> Self | None:
        """The rows that have a flag; None where no row has one."""
        members = [index for index, flag in enumerate(flags) if flag]
        return cls(members, len(flags)) if members else None

    @property
    def all(self) -> bool:
        return len(self.members) == self._size

    @property
    def share(self) -> float:
        """How much of the array it is."""
        return len(self.members) / self._size

    def take(self, values: mx.array) -> mx.array:
        """(N, …) to (n, …)."""
        return values if self.all else values[self._index]

    def put(self, values: mx.array, part: mx.array) -> mx.array:
        """(N, …) with (n, …) in the places of the group. Both of one dtype."""
        if self.all:
            return part
        # One pass over what stays: to index the whole array would be two.
        return mx.concatenate([(part if own else values)[start:stop] for own, start, stop in self._runs])

    @cached_property
    def _index(self) -> mx.array:
        return mx.array(self.members, dtype=mx.uint32)

    @cached_property
    def _runs(self) -> list[tuple[bool, int, int]]:
        """Whether the group's own, and from where to where: in the order of the rows."""
        places = {member: index for index, member in enumerate(self.members)}
        runs = []
        for own, run in groupby(range(self._size), places.__contains__):
            first, *_ = rows = list(run)
            start = places[first] if own else first
            runs.append((own, start, start + len(rows)))
        return runs


def column(values: Sequence[bool | int | float], dtype: mx.Dtype = mx.float32) -> mx.array:
    """(n, 1) on the device, one value for each row."""
    return mx.array(list(values), dtype=dtype)[:, None]
