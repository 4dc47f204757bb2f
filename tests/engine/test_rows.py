"""Rows keep step with whatever mlx-lm does to its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_roster.core import Sampling
from mlx_roster.engine.edits import Edits
from mlx_roster.engine.penalties import looks
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Draw, Sampler

GREEDY = Sampling(temperature=0)
V = 9
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
    assert batch.once(Draw.of) is batch.once(Draw.of)
    before = batch.slots, batch.once(Draw.of)
    batch.filter([0, 1])
    assert batch.slots is not before[0]
    assert batch.once(Draw.of) is not before[1]


@pytest.mark.parametrize(("held", "single"), [((0, 0), 0), ((0, 1), None), ((2, 2), 2), ((), None)])
def test_slots_in_use_follow_the_rows(held: tuple[int, ...], single: int | None) -> None:
    batch = rows(*held)
    assert (batch.distinct, batch.single) == (set(held), single)


def test_greedy_is_temperature_zero_or_a_top_k_of_one_that_xtc_leaves_alone() -> None:
    assert Row(0, GREEDY).greedy
    assert Row(0, Sampling(temperature=2.0, top_k=1)).greedy
    assert not Row(0, Sampling(temperature=2.0, top_k=1, xtc_probability=0.1)).greedy
    assert not Row(0, CHANCE).greedy


def drawn(batch: Rows, inputs: list[int] | None = None) -> list[int]:
    """Have a token drawn for each row."""
    routing = Routing()
    routing.rows, routing.logits = batch, mx.random.normal((len(batch), 1, V), key=mx.random.key(3))
    routing.inputs = mx.array(inputs or [0] * len(batch))[:, None]
    return Sampler(routing)(routing.logits[:, 0]).tolist()  # type: ignore[return-value]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["draw", "split", "join", "leave", "extract"]), max_size=40))
def test_each_row_counts_its_own_draws_through_any_history(history: list[str]) -> None:
    expected: dict[int, int] = {}

    def newcomer() -> Rows:
        expected[len(expected) + 1] = 0
        return rows(len(expected), sampling=CHANCE)

    batch = newcomer()
    for event in history:
        if event == "draw":
            drawn(batch)
            for slot in slots(batch):
                expected[slot] += 1
        elif event == "split":
            split(batch)
        elif event == "join":
            batch.extend(newcomer())
        elif event == "leave" and len(batch) > 1:
            batch.filter(list(range(1, len(batch))))
        elif event == "extract":
            batch.extract(0)
        draw = batch.once(Draw.of)
        assert draw is not None
        assert draw.draws[:, 0].tolist() == [expected[slot] for slot in slots(batch)]


PENALISED = [
    Sampling(temperature=0, repetition_penalty=1.2, repetition_context_size=3),
    Sampling(temperature=0, presence_penalty=1.0, presence_context_size=6),
    Sampling(temperature=0, frequency_penalty=0.5, frequency_context_size=1000),
]


def split(batch: Rows) -> None:
    rest = copy.deepcopy(batch)
    batch.filter([0])
    rest.filter(list(range(1, len(rest))))
    batch.extend(rest)


COMPOSITIONS: dict[str, Callable[[Rows], object]] = {
    "split": split,
    "leave": lambda batch: batch.filter(list(range(1, len(batch))) or [0]),
    "extract": lambda batch: batch.extract(0),
    "turn": lambda batch: batch.filter(list(reversed(range(len(batch))))),
}


@settings(deadline=None)
@given(st.lists(st.sampled_from(["draw", "join", *COMPOSITIONS]), max_size=30))
def test_each_row_keeps_its_last_tokens_through_any_history(history: list[str]) -> None:
    """Each row is told tokens of its own, so that no other's can be taken for them."""
    seen: list[list[int]] = []
    kept: list[Row] = []
    batch = rows()
    for event in ["join", *history, "draw"]:
        if event == "join":
            slot = len(seen)
            seen.append([100 * slot + token for token in range(slot % 5)])
            kept.append(Row(slot, PENALISED[slot % 3], recent=np.array(seen[slot], dtype=np.int32)))
            batch.extend(Rows([kept[slot]]))
        elif event == "draw":
            inputs = [100 * slot + len(seen[slot]) for slot in slots(batch)]
            looked(batch, inputs)
            for slot, token in zip(slots(batch), inputs, strict=True):
                seen[slot].append(token)
        else:
            COMPOSITIONS[event](batch)
    widest = max(looks(row.sampling) for row in kept)
    for slot in slots(batch):
        held = [token for token in np.array(kept[slot].last()).tolist() if token >= 0]
        size = looks(kept[slot].sampling)
        assert held[-size:] == seen[slot][-size:]
        assert len(held) <= widest


def looked(batch: Rows, inputs: list[int]) -> None:
    edits = batch.once(Edits.of)
    assert edits is not None
    edits(mx.zeros((len(batch), 5000)), mx.array(inputs)[:, None], 0, mx.array([0]))


def test_cache_verbs_that_do_not_concern_rows_do_nothing() -> None:
    batch = rows(1)
    batch.prepare(lengths=[3], right_padding=[0])
    batch.finalize()
    assert batch.trim(3) == 3
    assert batch.is_trimmable()
    assert (batch.state, batch.nbytes, batch.size(), batch.empty()) == ([], 0, 0, False)
    mx.eval(batch.state)
    assert repr(batch) == "<Rows slots=[1] draws=[0]>"
