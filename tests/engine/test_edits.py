"""What requests do to logits: bias, penalties, least lengths, grammar."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx_lm.sample_utils import make_logits_processors

from mlx_roster.engine.edits import Edits
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler
from tests.engine import reference
from tests.engine.drawing import (
    KINDS,
    STOPS,
    Fence,
    Spoken,
    V,
    batch,
    draws,
    logits,
    sampling,
)


def edited(row: Row, given: mx.array, inputs: Sequence[int]) -> np.ndarray:
    """The logits (1, V) that a row is about to draw by."""
    edits = Edits.of([row])
    assert edits is not None
    return np.array(edits(given, mx.array(list(inputs))[:, None], 0, mx.array(STOPS)))


@pytest.mark.parametrize("seed", range(6))
def test_penalties_and_bias_are_those_of_mlx_lm(seed: int) -> None:
    chance = random.Random(seed)
    fields: dict[str, Any] = {
        "logit_bias": {chance.randrange(V): chance.uniform(-9, 9) for _ in range(3)},
        "repetition_penalty": chance.uniform(0.6, 1.8),
        "repetition_context_size": chance.choice([1, 4, 20, 100]),
        "presence_penalty": chance.uniform(-2, 2),
        "presence_context_size": chance.choice([1, 4, 20, 100]),
        "frequency_penalty": chance.uniform(-2, 2),
        "frequency_context_size": chance.choice([1, 4, 20, 100]),
    }
    tokens = chance.choices(range(8), k=30)
    given = logits(1, seed)
    expected = given
    for process in make_logits_processors(**fields):
        expected = process(mx.array(tokens), mx.array(expected))
    row = Row(0, sampling(**fields), recent=np.array(tokens[:-1], dtype=np.int32))
    values = edited(row, given, tokens[-1:])
    np.testing.assert_allclose(values, np.array(expected), rtol=1e-5, atol=1e-5)
    judged = reference.edited(np.array(given[0]), sampling(**fields), tokens)
    np.testing.assert_allclose(values[0], judged, rtol=1e-5, atol=1e-5)


def test_a_penalty_whose_context_is_empty_is_none() -> None:
    given = logits(1)
    fields = {f"{kind}_context_size": 0 for kind in KINDS}
    asked = sampling(repetition_penalty=1.9, presence_penalty=2.0, frequency_penalty=2.0, **fields)
    some = msgspec.structs.replace(asked, presence_context_size=2)
    assert Edits.of([Row(0, asked)]) is None
    both = Spoken(Row(0, asked, recent=[4, 5]), Row(0, some, recent=[4, 5]))
    edits = both.rows.once(Edits.of)
    assert edits is not None
    wide = mx.concatenate([given, given])
    # Only the second row is edited, and only what is edited comes back.
    [values] = np.array(edits(wide, mx.array([[6], [6]]), 0, mx.array(STOPS)))
    assert np.flatnonzero(values != np.array(given[0])).tolist() == [5, 6]


def test_no_end_before_so_many_tokens() -> None:
    given = logits(1)
    given[0, STOPS[0]], given[0, STOPS[1]] = 50.0, 40.0
    for temperature in (0.0, 0.1):
        spoken = batch(sampling(temperature=temperature, min_tokens=3), sampling(temperature=temperature))
        said = [spoken(mx.concatenate([given, given])) for _ in range(5)]
        assert [tokens[0] for tokens in said[3:]] == [STOPS[0]] * 2
        assert all(tokens[0] not in STOPS for tokens in said[:3])
        assert [tokens[1] for tokens in said] == [STOPS[0]] * 5


def test_least_length_counts_through_changes_of_the_batch() -> None:
    given = mx.zeros((1, V))
    given[0, STOPS[0]] = 50.0
    spoken = batch(sampling(temperature=0, min_tokens=4))
    said = []
    for _ in range(6):
        said += spoken(given)
        spoken.rows = Rows.merge([spoken.rows.extract(0)])
    assert [token == STOPS[0] for token in said] == [False] * 4 + [True] * 2


def test_end_of_sequence_tokens_that_a_model_does_not_have_are_no_concern() -> None:
    routing = Routing()
    routing.rows, routing.inputs = Rows([Row(0, sampling(min_tokens=5, xtc_probability=1.0))]), mx.array([[1]])
    routing.logits = mx.zeros((1, 1, V))
    assert Sampler(routing, (V, 5000), (V + 1,))(mx.zeros((1, V))).item() < V  # type: ignore[operator]


def test_bias_lifts_and_sinks() -> None:
    given = logits(2)
    top = int(mx.argmax(given[0]).item())
    spoken = batch(sampling(temperature=0, logit_bias={11: 100.0}), sampling(temperature=0, logit_bias={}))
    assert spoken(given) == [11, mx.argmax(given[1]).item()]
    assert top not in draws(sampling(logit_bias={top: -100.0}), given[:1], 200)


def test_a_gate_is_told_all_tokens_and_asked_before_each() -> None:
    fence = Fence({4, 33, 49})
    spoken = Spoken(Row(0, sampling(), seed=1), Row(0, sampling(temperature=5.0), seed=2, gate=fence))
    inputs = [1, 1]
    said = []
    for step in range(12):
        inputs = spoken(logits(2, step), inputs)
        said.append(inputs[1])
        assert fence.seen == said[:-1]
    assert set(said) == {4, 33, 49}


def test_a_gate_that_allows_all_changes_nothing() -> None:
    given = logits(1)
    free = Spoken(Row(0, sampling(), seed=5))
    open_ = Spoken(Row(0, sampling(), seed=5, gate=Fence(None)))
    assert [free(given) for _ in range(20)] == [open_(given) for _ in range(20)]


def test_a_gate_may_allow_what_the_model_never_says() -> None:
    given = logits(1)
    given[0, 4] = -mx.inf
    for temperature in (0.0, 1.0):
        spoken = Spoken(Row(0, sampling(temperature=temperature, top_p=0.9), gate=Fence({4})))
        assert spoken(given) == [4]


def test_least_length_is_not_for_gated_rows() -> None:
    assert Spoken(Row(0, sampling(min_tokens=5), gate=Fence({STOPS[0]})))(logits(1)) == [STOPS[0]]
