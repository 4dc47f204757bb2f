"""The shared sampler: each row by its own parameters, and from its own chance."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest

from mlx_roster.engine.cuts import FEW
from mlx_roster.engine.rows import Row
from mlx_roster.engine.sampling import Draw
from tests.engine import reference
from tests.engine.drawing import (
    NEWLINE,
    STOPS,
    Fence,
    Spoken,
    V,
    batch,
    drawn_at_random,
    draws,
    logits,
    sampling,
)


def test_all_greedy_is_argmax() -> None:
    given = logits(2)
    assert batch(sampling(temperature=0), sampling(temperature=0))(given) == mx.argmax(given, axis=-1).tolist()


def test_greedy_row_among_sampled_ones_is_still_argmax() -> None:
    given = logits(3)
    spoken = batch(sampling(temperature=5.0), sampling(temperature=0), sampling(temperature=5.0, top_k=1))
    for _ in range(20):
        assert spoken(given)[1:] == mx.argmax(given, axis=-1)[1:].tolist()


def test_frequencies_are_those_of_the_softmax() -> None:
    given = logits(1)
    probabilities = mx.softmax(given[0] / 1.5).tolist()
    seen = draws(sampling(temperature=1.5), given, 3000)
    assert isinstance(probabilities, list)
    for token, probability in enumerate(probabilities):
        assert seen[token] / 3000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("size", [V, 3 * FEW])
@pytest.mark.parametrize("seed", range(8))
def test_every_row_of_a_mixed_batch_is_what_its_own_parameters_make_of_it(seed: int, size: int) -> None:
    chance = random.Random(seed)
    asked = [drawn_at_random(chance, size) for _ in range(24)]
    prompts = [chance.choices(range(size), k=chance.choice([0, 1, 5, 40])) for _ in asked]
    fences = [Fence(chance.sample(range(size), 9)) if chance.random() < 0.2 else None for _ in asked]
    spoken = Spoken(
        *[
            Row(0, one, seed=chance.getrandbits(64), recent=recent, gate=fence)
            for one, recent, fence in zip(asked, prompts, fences, strict=True)
        ]
    )
    inputs = chance.choices(range(size), k=len(asked))
    history = [[*prompt, token] for prompt, token in zip(prompts, inputs, strict=True)]
    for step in range(5):
        given = logits(len(asked), 100 * seed + step, size)
        inputs = spoken(given, inputs)
        for row, token in enumerate(inputs):
            early = STOPS if step < asked[row].min_tokens and fences[row] is None else ()
            fence = fences[row]
            allowed = None if fence is None else fence.allowed
            values = reference.edited(np.array(given[row]), asked[row], history[row], early=early, allowed=allowed)
            if asked[row].temperature == 0:
                assert token == values.argmax()
            else:
                coin = asked[row].xtc_probability == 1
                assert token in reference.left(values, asked[row], coin=coin, kept=(*STOPS, NEWLINE))
            history[row].append(token)
    assert [fence.seen for fence in fences if fence is not None] == [
        tokens[-5:-1] for tokens, fence in zip(history, fences, strict=True) if fence is not None
    ]


@pytest.mark.parametrize("temperature", [1e-300, 1e-20, 1e-3])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    given = logits(1)
    assert set(draws(sampling(temperature=temperature), given, 20)) == {mx.argmax(given[0]).item()}


def test_no_temperature_is_too_high() -> None:
    assert len(draws(sampling(temperature=1e300, top_k=3), logits(1), 100)) == 3


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_free_rows_draw_the_same_beside_rows_of_any_kind(dtype: mx.Dtype) -> None:
    chance = random.Random(3)
    for fields in ({}, {"top_p": 0.9}, {"top_k": 9, "min_p": 0.05}, {"temperature": 0.0}):
        mine = sampling(**fields)
        alone = Spoken(Row(0, mine, seed=6))
        crowd = Spoken(
            *[Row(0, drawn_at_random(chance, V), seed=index) for index in range(6)],
            Row(0, mine, seed=6),
            Row(0, sampling(), gate=Fence({1, 2})),
            Row(0, sampling(), top=5),
        )
        for step in range(10):
            given = logits(9, step).astype(dtype)
            assert crowd(given)[6] == alone(given[6:7])[0]


def test_half_precision_logits_are_sampled_alike() -> None:
    given = logits(2).astype(mx.bfloat16)
    assert batch(sampling(top_p=0.9), sampling(temperature=0))(given)[1] == mx.argmax(given[1]).item()


def test_rounding_of_log_probabilities_does_not_decide() -> None:
    """Two logits that differ, and whose log-probabilities in half precision do not."""
    given = mx.zeros((1, V))
    given[0, 20], given[0, 30] = 0.5, 0.50390625
    given = given.astype(mx.bfloat16)
    logprobs = given - mx.logsumexp(given, axis=-1, keepdims=True)
    assert logprobs[0, 20].item() == logprobs[0, 30].item()
    assert batch(sampling(temperature=0))(given) == [30]


def test_seed_gives_the_same_tokens_with_any_neighbours() -> None:
    given = logits(1)
    mine = sampling(temperature=1.3, xtc_probability=0.5, xtc_threshold=0.05)
    alone = Spoken(Row(0, mine, seed=42))
    expected = [alone(given)[0] for _ in range(30)]
    neighbours = [sampling(temperature=0), sampling(top_p=0.3), sampling(top_k=3, min_p=0.1)]
    crowd = Spoken(
        Row(0, neighbours[0]), Row(0, mine, seed=42), Row(0, neighbours[1], seed=3), Row(0, neighbours[2], seed=4)
    )
    wide = mx.concatenate([logits(1, 7), given, logits(2, 9)])
    assert [crowd(wide)[1] for _ in range(30)] == expected


def test_seeds_and_draws_are_independent() -> None:
    given = mx.zeros((1, V))
    sequences = [tuple(draws(sampling(), given, 8, seed).elements()) for seed in (0, 1, -1, 2**64, 2**80)]
    assert len(set(sequences)) == len(sequences)
    assert len(draws(sampling(), given, 200)) > V * 0.8


def test_steady_state_makes_parameters_once() -> None:
    spoken = batch(sampling(), sampling(top_p=0.5))
    spoken(logits(2))
    draw = spoken.rows.once(Draw.of)
    spoken(logits(2))
    assert spoken.rows.once(Draw.of) is draw
    assert draw is not None
    assert draw.draws[:, 0].tolist() == [2, 2]


def test_logits_are_let_go() -> None:
    spoken = batch(sampling())
    spoken(logits(1))
    assert spoken.routing.logits is None
