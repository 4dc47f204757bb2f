"""Log-probabilities of what was drawn."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest

from mlx_roster.engine.rows import Row
from tests.engine.drawing import (
    Fence,
    Spoken,
    V,
    drawn_at_random,
    logits,
    sampling,
)


def log_softmax(given: mx.array) -> np.ndarray:
    values = np.array(given.astype(mx.float32)).astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    scored: np.ndarray = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return scored


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_scores_are_those_of_raw_logits_whatever_is_done_to_them(dtype: mx.Dtype) -> None:
    chance = random.Random(1)
    tops = [None, 0, 1, 20, None, 5, V + 3]
    rows = [
        Row(0, drawn_at_random(chance, V), seed=index, top=top, gate=Fence({9, 10}) if index == 3 else None)
        for index, top in enumerate(tops)
    ]
    spoken = Spoken(*rows)
    inputs = [2] * len(rows)
    said: list[tuple[np.ndarray, list[int]]] = []
    for step in range(4):
        given = logits(len(rows), step).astype(dtype)
        inputs = spoken(given, inputs)
        said.append((log_softmax(given), inputs))
    for expected, tokens in said:
        for index, (row, top) in enumerate(zip(rows, tops, strict=True)):
            if top is None:
                continue
            score, likeliest = row.score(tokens[index])
            assert score == pytest.approx(expected[index, tokens[index]], abs=1e-5)
            assert len(likeliest) == min(top, V)
            assert [value for _, value in likeliest] == pytest.approx(sorted(expected[index])[::-1][:top], abs=1e-5)
            assert all(value == pytest.approx(expected[index, token], abs=1e-5) for token, value in likeliest)
            assert dict(likeliest).get(tokens[index], score) == score
    assert not any(row.scores for row in rows)


def test_a_greedy_token_scores_exactly_as_the_likeliest() -> None:
    for step in range(20):
        row = Row(0, sampling(temperature=0), top=3)
        given = logits(1, step).astype(mx.bfloat16)
        score, likeliest = row.score(Spoken(row)(given)[0])
        assert likeliest[0][1] == score
