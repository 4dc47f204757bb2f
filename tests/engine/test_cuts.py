"""What is left to chance: top_p, min_p, XTC and top_k, each row by its own."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, apply_xtc

from mlx_roster.core import Sampling
from mlx_roster.engine.cuts import FEW, Cuts
from tests.engine import reference
from tests.engine.drawing import (
    NEWLINE,
    STOPS,
    V,
    drawn_at_random,
    draws,
    logits,
    sampling,
)


def cut(asked: Sequence[Sampling], given: mx.array, kept: Collection[int] = ()) -> list[set[int]]:
    """The tokens left of each row. Coins of XTC are whatever they are: ask for probabilities of 0 or 1."""
    cuts = Cuts.of(asked)
    assert cuts is not None
    held = mx.array(np.isin(np.arange(given.shape[-1]), list(kept)))
    keys = mx.zeros((len(asked), 2), dtype=mx.uint32)
    return tokens_of(cuts(given, keys, held))


def tokens_of(values: mx.array) -> list[set[int]]:
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in np.array(values)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("fields", "upstream"),
    [
        ({"top_p": 0.7}, lambda given: apply_top_p(given, 0.7)),
        ({"top_p": 0.05}, lambda given: apply_top_p(given, 0.05)),
        ({"min_p": 0.1}, lambda given: apply_min_p(given, 0.1)),
        ({"min_p": 1.0}, lambda given: apply_min_p(given, 1.0)),
        ({"top_k": 7}, lambda given: apply_top_k(given, 7)),
        (
            {"top_k": 5, "top_p": 0.9, "min_p": 0.02},
            lambda given: apply_top_k(apply_min_p(apply_top_p(given, 0.9), 0.02), 5),
        ),
        (
            {"xtc_probability": 1.0, "xtc_threshold": 0.05},
            lambda given: apply_xtc(given, 1.0, 0.05, [NEWLINE]),
        ),
        (
            {"xtc_probability": 1.0, "xtc_threshold": 0.0, "top_p": 0.9, "min_p": 0.01, "top_k": 2},
            lambda given: apply_top_k(apply_xtc(apply_min_p(apply_top_p(given, 0.9), 0.01), 1.0, 0.0, [NEWLINE]), 2),
        ),
    ],
)
def test_cuts_are_those_of_mlx_lm(fields: dict[str, Any], upstream: Any, seed: int) -> None:
    given = logits(3, seed)
    given = given - mx.logsumexp(given, axis=-1, keepdims=True)
    assert cut([sampling(**fields)] * 3, given, [NEWLINE]) == tokens_of(upstream(given))


@pytest.mark.parametrize("size", [V, 3 * FEW])
@pytest.mark.parametrize("seed", range(8))
def test_exactly_what_may_be_drawn_is_left(seed: int, size: int) -> None:
    chance = random.Random(seed)
    asked = [msgspec.structs.replace(drawn_at_random(chance, size), temperature=1.0) for _ in range(24)]
    given = logits(len(asked), seed, size)
    kept = (*STOPS, NEWLINE)
    expected = [
        reference.left(values, one, coin=one.xtc_probability == 1, kept=kept)
        for values, one in zip(np.array(given).astype(np.float64), asked, strict=True)
    ]
    assert cut(asked, given, kept) == expected


def test_tokens_that_tie_with_the_last_one_stay_too() -> None:
    given = mx.array([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert cut([sampling(top_k=2)], given) == [{1, 2, 3}]


def test_nothing_but_one_token_left_is_that_token() -> None:
    given = mx.full((1, V), -mx.inf)
    given[0, 9] = -5.0
    for fields in ({}, {"top_p": 0.1}, {"top_k": 3}, {"min_p": 1.0}, {"xtc_probability": 1.0}, {"top_k": FEW + 1}):
        assert set(draws(sampling(**fields), given, 5)) == {9}, fields


def test_xtc_strikes_as_often_as_it_should() -> None:
    given = mx.log(mx.array([[0.2, 0.5, 0.3]]))
    seen = draws(sampling(xtc_probability=0.25, xtc_threshold=0.25, top_k=1), given, 2000)
    assert seen[1] + seen[2] == 2000
    assert seen[2] / 2000 == pytest.approx(0.25, abs=0.03)


def test_xtc_never_takes_away_ends_and_newlines() -> None:
    given = mx.full((1, V), -20.0)
    given[0, 0], given[0, 7], given[0, NEWLINE], given[0, 5], given[0, 6] = 1.0, 1.1, 1.2, 1.3, 0.9
    asked = sampling(xtc_probability=1.0, xtc_threshold=0.1, temperature=3.0)
    assert set(draws(asked, given, 200)) >= {0, 7, NEWLINE, 6}
    assert 5 not in draws(asked, given, 200)


def test_coin_of_xtc_says_nothing_of_what_is_drawn() -> None:
    given = mx.log(mx.array([[0.0, 0.3, 0.3, 0.0, 0.4]]))
    seen = draws(sampling(xtc_probability=0.5, xtc_threshold=0.25), given, 3000)
    # The two least likely tie, so both of them stay.
    assert [seen[token] / 3000 for token in (1, 2, 4)] == pytest.approx([0.4, 0.4, 0.2], abs=0.03)
