"""Which Residents make room. A pure question, asked speculatively: it changes nothing and logs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A Resident that may be evicted: ready, no lease, nobody waiting for it."""

    serial: int
    size: int
    idle_since: float


def victims(candidates: Sequence[Candidate], need: int) -> list[Candidate] | None:
    """The fewest candidates that free `need` bytes, and among those sets the least recently used one.

    None where even all of them do not suffice: then none is worth evicting.
    """
    if need <= 0:
        return []
    by_size = sorted((candidate.size for candidate in candidates), reverse=True)
    count = _fewest(by_size, need)
    if count is None:
        return None
    chosen: list[Candidate] = []
    left = sorted(candidates, key=lambda candidate: (candidate.idle_since, candidate.serial))
    while need > 0:
        # The oldest that still leaves the job possible for the places that remain.
        for candidate in left:
            rest = sorted((other.size for other in left if other is not candidate), reverse=True)
            if candidate.size + sum(rest[: count - len(chosen) - 1]) >= need:
                break
        left.remove(candidate)
        chosen.append(candidate)
        need -= candidate.size
    return chosen


def _fewest(sizes: Sequence[int], need: int) -> int | None:
    """How many of `sizes`, largest first, reach `need`."""
    freed = 0
    for count, size in enumerate(sizes, 1):
        freed += size
        if freed >= need:
            return count
    return None
