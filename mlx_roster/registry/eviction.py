"""Which Residents make room. A pure question, asked speculatively: it changes nothing and logs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A Resident that may have to go. `idle_since` is infinite for one that is in use."""

    serial: int
    size: int
    idle_since: float


def victims(candidates: Sequence[Candidate], need: int) -> list[Candidate] | None:
    """The fewest candidates that free `need` bytes, and among those sets the least recently used one.

    None where even all of them do not suffice: then none is worth evicting.
    """
    if need <= 0:
        return []
    count = _fewest(sorted((candidate.size for candidate in candidates), reverse=True), need)
    if count is None:
        return None
    chosen: list[Candidate] = []
    left = sorted(candidates, key=lambda candidate: (candidate.idle_since, candidate.serial))
    while need > 0:
        oldest = _oldest_that_leaves_it_possible(left, need, count - len(chosen) - 1)
        left.remove(oldest)
        chosen.append(oldest)
        need -= oldest.size
    return chosen


def _oldest_that_leaves_it_possible(left: Sequence[Candidate], need: int, places: int) -> Candidate:
    """The first of `left` with which, and with the `places` largest others, `need` is reached."""
    sizes = sorted((candidate.size for candidate in left), reverse=True)
    largest, next_largest = sum(sizes[:places]), sizes[places] if places < len(sizes) else 0
    for candidate in left:
        among_them = places > 0 and candidate.size >= sizes[places - 1]
        others = largest - candidate.size + next_largest if among_them else largest
        if candidate.size + others >= need:
            return candidate
    raise AssertionError("as many as are left do not suffice")


def _fewest(sizes: Sequence[int], need: int) -> int | None:
    """How many of `sizes`, largest first, reach `need`."""
    freed = 0
    for count, size in enumerate(sizes, 1):
        freed += size
        if freed >= need:
            return count
    return None
