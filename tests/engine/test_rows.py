"""Rows keep step with whatever mlx-lm does to its batches."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.core import Sampling
from mlx_roster.engine.rows import Row, Rows

GREEDY = Sampling(temperature=0)
CHANCE = Sampling(temperature=0.7, seed=1)


def rows(*slots: int, sampling: Sampling = GREEDY) -> Rows:
    return Rows([Row(slot, sampling, seed=slot) for slot in slots])


def slots(batch: Rows) -> list[int]:
    held: list[int] = batch.slots.tolist()  # type: ignore[assignment]
    return held


def test_merge_extend_and_filter_keep_the_order_of_the_batch() -> None:
    batch = rows(1).merge([rows(3), rows(0), rows(2)])
    batch.extend(rows(5, 6))
    assert slots(batch) == [3, 0, 2, 5, 6]
    batch.filter([0, 3, 4])
    assert slots(batch) == [3, 5, 6]
    assert slots(batch.extract(1)) == [5]


def test_split_by_copy_leaves_each_row_in_one_half() -> None:
    batch = rows(1, 2, 3)
    taken = copy.deepcopy(batch)
    batch.filter([1])
    taken.filter([0, 2])
    assert (slots(batch), slots(taken)) == ([2], [1, 3])


def test_device_arrays_are_made_once_per_composition() -> None:
    batch = rows(1, 2, sampling=CHANCE)
    assert batch.slots is batch.slots
    assert batch.draw is batch.draw
    before = batch.slots
    batch.filter([0, 1])
    assert batch.slots is not before


@pytest.mark.parametrize(("held", "single"), [((0, 0), 0), ((0, 1), None), ((2, 2), 2), ((), None)])
def test_slots_in_use_follow_the_rows(held: tuple[int, ...], single: int | None) -> None:
    batch = rows(*held)
    assert (batch.distinct, batch.single) == (set(held), single)


def test_greedy_is_temperature_zero_or_a_top_k_of_one() -> None:
    assert rows(0, 1).greedy
    assert Rows([Row(0, Sampling(temperature=2.0, top_k=1))]).greedy
    assert not Rows([Row(0, GREEDY), Row(0, CHANCE)]).greedy


@given(st.lists(st.sampled_from(["draw", "split", "join", "leave", "extract"]), max_size=40))
def test_each_row_counts_its_own_draws_through_any_history(history: list[str]) -> None:
    expected: dict[int, int] = {}

    def newcomer() -> Rows:
        expected[len(expected) + 1] = 0
        return rows(len(expected), sampling=CHANCE)

    batch = newcomer()
    for event in history:
        if event == "draw":
            batch.draw.draws = batch.draw.draws + 1
            batch.drew()
            for slot in slots(batch):
                expected[slot] += 1
        elif event == "split" and len(batch) > 1:
            rest = copy.deepcopy(batch)
            batch.filter([0])
            rest.filter(list(range(1, len(rest))))
            batch.extend(rest)
        elif event == "join":
            batch.extend(newcomer())
        elif event == "leave" and len(batch) > 1:
            batch.filter(list(range(1, len(batch))))
        elif event == "extract":
            batch.extract(0)
        assert batch.draw.draws[:, 0].tolist() == [expected[slot] for slot in slots(batch)]


def test_cache_verbs_that_do_not_concern_rows_do_nothing() -> None:
    batch = rows(1)
    batch.prepare(lengths=[3], right_padding=[0])
    batch.finalize()
    assert batch.trim(3) == 3
    assert batch.is_trimmable()
    assert (batch.state, batch.nbytes, batch.size(), batch.empty()) == ([], 0, 0, False)
    mx.eval(batch.state)
    assert repr(batch) == "<Rows slots=[1] draws=[0]>"
