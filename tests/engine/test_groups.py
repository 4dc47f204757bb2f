"""Groups of rows: taken out, and put back where they were."""

from __future__ import annotations

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_roster.engine.groups import Group


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_what_is_put_back_is_where_it_was(flags: list[bool]) -> None:
    group = Group.where(flags)
    if group is None:
        assert not any(flags)
        return
    values = mx.arange(2 * len(flags)).reshape(-1, 2)
    part = group.take(values)
    assert part[:, 0].tolist() == [2 * index for index, flag in enumerate(flags) if flag]
    put = group.put(values, -part)
    assert put.tolist() == [
        [-2 * index, -2 * index - 1] if flag else [2 * index, 2 * index + 1] for index, flag in enumerate(flags)
    ]
    assert group.all == all(flags)
