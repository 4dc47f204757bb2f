"""The shared sampler: each row by its own parameters, and from its own chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, apply_xtc, make_logits_processors

from mlx_roster.core import Sampling
from mlx_roster.engine.cuts import FEW, Cuts
from mlx_roster.engine.edits import Edits
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Draw, Sampler
from tests.engine import reference

V = 50
STOPS = (0, 7)
NEWLINE = 3


def logits(count: int, seed: int = 0, size: int = V) -> mx.array:
    return 3 * mx.random.normal((count, size), key=mx.random.key(seed))


def sampling(**fields: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0} | fields))


class Spoken:
    """Rows and their sampler, given logits by hand as a forward pass would."""

    def __init__(self, *rows: Row) -> None:
        self.routing = Routing()
        self.rows = Rows(list(rows))
        self.sampler = Sampler(self.routing, STOPS, (NEWLINE,))

    def __call__(self, given: mx.array, inputs: Sequence[int] = ()) -> list[int]:
        self.routing.rows = self.rows
        self.routing.inputs = mx.array(list(inputs) or [1] * len(self.rows))[:, None]
        self.routing.logits = given[:, None]
        tokens: Any = self.sampler(given - mx.logsumexp(given, axis=-1, keepdims=True)).tolist()
        return list(tokens)


def batch(*asked: Sampling) -> Spoken:
    return Spoken(*[Row(0, one, seed=index) for index, one in enumerate(asked)])


def draws(row: Sampling, given: mx.array, count: int, seed: int = 0) -> Counter[int]:
    spoken = Spoken(Row(0, row, seed=seed))
    return Counter(spoken(given)[0] for _ in range(count))


class Fence:
    """A gate that allows some tokens, or all, and remembers what has been drawn."""

    def __init__(self, allowed: Collection[int] | None) -> None:
        self.allowed = allowed
        self.seen: list[int] = []
        self.error: str | None = None

    def advance(self, token: int) -> None:
        self.seen.append(token)

    def mask(self, words: np.ndarray) -> bool:
        if self.allowed is None:
            words.fill(0x5A5A5A5A)
            return False
        bits = words.view(np.uint32)
        for token in self.allowed:
            bits[token // 32] |= np.uint32(1 << (token % 32))
        return True


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


# What is cut off.


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


def drawn_at_random(chance: random.Random, size: int) -> Sampling:
    """Parameters within API.md's bounds, each there or not."""

    def maybe(field: str, value: Any) -> dict[str, Any]:
        return {field: value} if chance.random() < 0.4 else {}

    penalties = {
        **maybe("repetition_penalty", chance.uniform(0.5, 2.0)),
        **maybe("presence_penalty", chance.uniform(-2, 2)),
        **maybe("frequency_penalty", chance.uniform(-2, 2)),
    }
    sizes = [maybe(f"{kind}_context_size", chance.choice([0, 1, 3, 20, 1000])) for kind in KINDS]
    biased = {chance.randrange(size): chance.choice([-100.0, 100.0, chance.uniform(-5, 5)]) for _ in range(4)}
    return sampling(
        **penalties,
        **{field: value for one in sizes for field, value in one.items()},
        **maybe("logit_bias", biased),
        **maybe("min_tokens", 2),
        **maybe("top_p", chance.uniform(0.05, 1)),
        **maybe("top_k", chance.choice([0, 1, 2, 10, size - 1, size + 1, 2**40])),
        **maybe("min_p", chance.uniform(0, 0.3)),
        **maybe("xtc_probability", 1.0),
        xtc_threshold=chance.uniform(0, 0.5),
        temperature=chance.choice([0.0, 0.3, 1.0, 2.5]),
    )


KINDS = ("repetition", "presence", "frequency")


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


@pytest.mark.parametrize("temperature", [1e-300, 1e-20, 1e-3])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    given = logits(1)
    assert set(draws(sampling(temperature=temperature), given, 20)) == {mx.argmax(given[0]).item()}


def test_no_temperature_is_too_high() -> None:
    assert len(draws(sampling(temperature=1e300, top_k=3), logits(1), 100)) == 3


# XTC.


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


# Penalties, bias, least lengths.


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
    values = np.array(edits(wide, mx.array([[6], [6]]), 0, mx.array(STOPS)))
    assert np.array_equal(values[0], np.array(given[0]))
    assert np.flatnonzero(values[1] != values[0]).tolist() == [5, 6]


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


# Grammar.


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


# Half precision, seeds, steady state.


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


# Log-probabilities.


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
