"""The shared sampler: each row by its own parameters, and from its own chance."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlx_roster.core import Sampling
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler, _cut

V = 50


def logprobs(count: int, seed: int = 0) -> mx.array:
    logits = 3 * mx.random.normal((count, V), key=mx.random.key(seed))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def sampling(**fields: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0} | fields))


def batch(*rows: Sampling, seeds: list[int] | None = None) -> tuple[Sampler, Rows]:
    routing = Routing()
    routing.rows = Rows([Row(0, row, seed=seeds[index] if seeds else index) for index, row in enumerate(rows)])
    return Sampler(routing), routing.rows


def draws(row: Sampling, given: mx.array, count: int, seed: int = 0) -> Counter[int]:
    sampler, _ = batch(row, seeds=[seed])
    seen: Counter[int] = Counter()
    for _ in range(count):
        seen[sampler(given).item()] += 1  # type: ignore[index]
    return seen


def test_all_greedy_is_argmax_and_draws_nothing() -> None:
    sampler, rows = batch(sampling(temperature=0), sampling(temperature=0))
    given = logprobs(2)
    assert mx.array_equal(sampler(given), mx.argmax(given, axis=-1))
    assert "draws=[0, 0]" in repr(rows)


def test_greedy_row_among_sampled_ones_is_still_argmax() -> None:
    given = logprobs(3)
    sampler, _ = batch(sampling(temperature=5.0), sampling(temperature=0), sampling(temperature=5.0, top_k=1))
    for _ in range(20):
        assert sampler(given)[1:].tolist() == mx.argmax(given, axis=-1)[1:].tolist()


def test_frequencies_are_those_of_the_softmax() -> None:
    given = logprobs(1)
    probabilities = mx.softmax(given[0] / 1.5).tolist()
    seen = draws(sampling(temperature=1.5), given, 3000)
    assert isinstance(probabilities, list)
    for token, probability in enumerate(probabilities):
        assert seen[token] / 3000 == pytest.approx(probability, abs=0.03)


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
    ],
)
def test_cuts_are_those_of_mlx_lm(fields: dict[str, Any], upstream: Any, seed: int) -> None:
    given = logprobs(3, seed)
    _, rows = batch(*[sampling(**fields)] * 3)
    assert mx.array_equal(_cut(given, rows.draw), upstream(given))


def test_each_row_is_cut_by_its_own_parameters() -> None:
    given = logprobs(4)
    _, rows = batch(sampling(top_k=2), sampling(), sampling(top_p=0.5), sampling(min_p=0.5))
    kept = (_cut(given, rows.draw) > -mx.inf).sum(axis=-1).tolist()
    assert isinstance(kept, list)
    assert kept[:2] == [2, V]
    assert 1 <= kept[2] < V
    assert 1 <= kept[3] < V


def test_top_k_above_the_vocabulary_cuts_nothing() -> None:
    given = logprobs(1)
    _, rows = batch(sampling(top_k=V + 1))
    assert mx.array_equal(_cut(given, rows.draw), given)


def test_tokens_that_are_cut_off_are_never_drawn() -> None:
    given = logprobs(1)
    likeliest = mx.argsort(-given[0])[:3].tolist()
    assert isinstance(likeliest, list)
    assert set(draws(sampling(temperature=10.0, top_k=3), given, 300)) == set(likeliest)


def test_half_precision_logits_are_sampled_alike() -> None:
    given = logprobs(2).astype(mx.bfloat16)
    sampler, _ = batch(sampling(top_p=0.9), sampling(temperature=0))
    assert sampler(given).dtype == mx.uint32
    assert sampler(given)[1].item() == mx.argmax(given[1]).item()


def test_seed_gives_the_same_tokens_with_any_neighbours() -> None:
    given = logprobs(1)
    mine = sampling(temperature=1.3)
    alone, _ = batch(mine, seeds=[42])
    expected = [alone(given).item() for _ in range(30)]
    neighbours = [sampling(temperature=0), sampling(top_p=0.3), sampling(top_k=3, min_p=0.1)]
    crowd, _ = batch(neighbours[0], mine, neighbours[1], neighbours[2], seeds=[1, 42, 3, 4])
    wide = mx.concatenate([logprobs(1, 7), given, logprobs(2, 9)])
    assert [crowd(wide)[1].item() for _ in range(30)] == expected


def test_seeds_and_draws_are_independent() -> None:
    given = mx.zeros((1, V)) - mx.log(mx.array(float(V)))
    sequences = [tuple(draws(sampling(), given, 8, seed).elements()) for seed in (0, 1, -1, 2**64, 2**80)]
    assert len(set(sequences)) == len(sequences)
    assert len(draws(sampling(), given, 200)) > V * 0.8


def test_steady_state_moves_nothing_to_the_device() -> None:
    sampler, rows = batch(sampling(), sampling())
    sampler(logprobs(2))
    draw = rows.draw
    sampler(logprobs(2))
    assert rows.draw is draw
    assert draw.draws[:, 0].tolist() == [2, 2]
