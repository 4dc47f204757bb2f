"""`victims` against every subset there is."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.registry.eviction import Candidate, victims

sizes = st.lists(st.integers(1, 20), max_size=7)


@given(sizes, st.integers(-5, 80))
def test_fewest_sufficient_victims_by_brute_force(sizes: list[int], need: int) -> None:
    candidates = [Candidate(serial, size, float(serial)) for serial, size in enumerate(sizes)]
    enough = [
        chosen
        for count in range(len(candidates) + 1)
        for chosen in combinations(candidates, count)
        if sum(c.size for c in chosen) >= need
    ]
    found = victims(candidates, need)
    if not enough:
        assert found is None
        return
    assert found is not None
    assert sum(c.size for c in found) >= need
    assert len(found) == len(enough[0])
    # Among the smallest sets, the one whose members are the least recently used, oldest first.
    best = min(tuple(sorted(c.idle_since for c in chosen)) for chosen in enough if len(chosen) == len(found))
    assert tuple(sorted(c.idle_since for c in found)) == best
