"""Sequences with parameters of every kind, through mlx-lm's BatchGenerator: each as if it were alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors

from mlx_roster.core import Sampling
from mlx_roster.engine.batch import Admission, Batch
from mlx_roster.engine.prefixes import Prefixes
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row
from mlx_roster.engine.sampling import Sampler
from tests.engine import tiny

END = 0
LENGTH = 12


class Chain:
    """A gate for which the last token decides which can be next: some of 7, or of all."""

    def __init__(self) -> None:
        self.said: list[int] = []
        self.error: str | None = None
        self.param = ""

    def advance(self, token: int) -> None:
        self.said.append(token)

    def mask(self, words: np.ndarray) -> bool:
        remainder = (sum(self.said) + len(self.said)) % 9
        if remainder > 6:
            return False
        bits = words.view(np.uint32)
        for token in range(remainder, 300, 7):
            bits[token // 32] |= np.uint32(1 << (token % 32))
        return True


class Asked:
    """One request, to be run any number of times."""

    def __init__(self, number: int) -> None:
        chance = random.Random(number)
        self.prompt = tiny.words(number, chance.choice([1, 2, 9, 30]))
        self.gated = chance.random() < 0.25
        self.seed = number
        self.top = chance.choice([None, None, 0, 3])

        def maybe(field: str, value: Any) -> dict[str, Any]:
            return {field: value} if chance.random() < 0.4 else {}

        self.sampling = Sampling(
            temperature=chance.choice([0.0, 0.0, 0.8, 1.2]),
            **maybe("top_p", 0.9),
            **maybe("top_k", chance.choice([2, 30])),
            **maybe("min_p", 0.05),
            **maybe("xtc_probability", 0.5),
            **maybe("repetition_penalty", 1.3),
            **maybe("repetition_context_size", chance.choice([2, 7, 1000])),
            **maybe("presence_penalty", 1.5),
            **maybe("presence_context_size", chance.choice([1, 5])),
            **maybe("frequency_penalty", 0.8),
            **maybe("logit_bias", dict.fromkeys(self.prompt[:3], 4.0) | {END: -100.0}),
        )

    def row(self) -> Row:
        recent = np.array(self.prompt[:-1], dtype=np.int32)
        gate = Chain() if self.gated else None
        return Row(0, self.sampling, seed=self.seed, recent=recent, gate=gate, top=self.top)


Said = list[tuple[int, Any]]


class Runs:
    """A batch, and what its sequences have said: tokens, each with its scores."""

    def __init__(self, model: Any) -> None:
        routing = Routing()
        caches = partial(make_prompt_cache, model)
        self.batch = Batch(model, routing, Sampler(routing, [END]), [END], 16, Prefixes(0, 0), caches, vocabulary=321)
        self.rows: dict[int, Row] = {}
        self.said: dict[int, Said] = {}
        self.ended: set[int] = set()

    def step(self, joining: Sequence[tuple[int, Asked]] = ()) -> None:
        admissions = []
        for number, asked in joining:
            self.rows[number], self.said[number] = asked.row(), []
            admissions.append(Admission(number, Prompt.of(asked.prompt), LENGTH, self.rows[number]))
        for token in self.batch.step(admissions):
            assert token.id is not None
            self.said[token.sequence].append((token.id, token.score))
            if token.finish is not None:
                self.ended.add(token.sequence)

    def alone(self, asked: Asked) -> Said:
        self.step([(-1, asked)])
        while -1 not in self.ended:
            self.step()
        self.ended.clear()
        return self.said.pop(-1)


@pytest.fixture(scope="module")
def base(model: Path) -> Any:
    return tiny.alone(model)


@pytest.fixture
def runs(base: Any) -> Iterator[Runs]:
    made = Runs(base)
    yield made
    made.batch.close()


def same(one: Said, other: Said) -> bool:
    if [token for token, _ in one] != [token for token, _ in other]:
        return False
    return all(
        (mine is None) == (theirs is None) and (mine is None or mine[0] == pytest.approx(theirs[0], abs=1e-3))
        for (_, mine), (_, theirs) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_whoever_joins_and_leaves_each_says_what_it_says_alone(runs: Runs, seed: int) -> None:
    chance = random.Random(seed)
    everyone = [Asked(100 * seed + number) for number in range(20)]
    alone = [runs.alone(asked) for asked in everyone]
    waiting = list(enumerate(everyone))
    chance.shuffle(waiting)
    dropped: set[int] = set()
    while waiting or len(runs.ended | dropped) < len(everyone):
        joining = [waiting.pop() for _ in range(min(chance.choice([0, 0, 1, 4]), len(waiting)))]
        runs.step(joining)
        running = sorted(set(runs.said) - runs.ended - dropped)
        if running and chance.random() < 0.1:
            dropped.add(chance.choice(running))
            runs.batch.drop(sorted(dropped))
    for number, said in runs.said.items():
        assert same(said, alone[number][: len(said)]), everyone[number].sampling
        assert len(said) == len(alone[number]) or number in dropped
    assert any(asked.gated for asked in everyone)


def test_gate_hears_all_that_was_said_through_changes_of_the_batch(runs: Runs) -> None:
    gated = Asked(0)
    gated.gated = True
    runs.step([(0, gated)])
    for number in range(1, 9):
        runs.step([(number, Asked(number))])
    while len(runs.ended) < 9:
        runs.step()
    gate = runs.rows[0].gate
    assert isinstance(gate, Chain)
    tokens = [token for token, _ in runs.said[0]]
    # What is drawn after the end comes to nothing, but may have been told.
    assert gate.said[: len(tokens)] == tokens[: len(gate.said)]
    assert len(gate.said) >= len(tokens) - 1


@pytest.mark.parametrize("seed", range(3))
def test_penalties_through_generation_are_those_of_mlx_lm(base: Any, runs: Runs, seed: int) -> None:
    fields = [
        {"repetition_penalty": 1.4, "repetition_context_size": 5},
        {"presence_penalty": 1.7},
        {"frequency_penalty": 0.9, "frequency_context_size": 100},
        {"logit_bias": {17: 3.0, 40: -2.0}, "repetition_penalty": 1.1, "presence_penalty": -0.5},
    ]
    prompts = [tiny.words(10 * seed + number, 3 + 8 * number) for number in range(len(fields))]
    upstream = BatchGenerator(base, stop_tokens=[[END]])
    uids = upstream.insert(
        prompts, [LENGTH] * len(prompts), logits_processors=[make_logits_processors(**one) for one in fields]
    )
    expected: dict[int, list[int]] = {uid: [] for uid in uids}
    while responses := upstream.next_generated():
        for response in responses:
            expected[response.uid].append(response.token)
    upstream.close()
    asking = [Asked(number) for number in range(len(fields))]
    for asked, prompt, one in zip(asking, prompts, fields, strict=True):
        asked.prompt, asked.gated, asked.sampling = prompt, False, Sampling(temperature=0.0, **one)
    runs.step(list(enumerate(asking)))
    while len(runs.ended) < len(asking):
        runs.step()
    assert [[token for token, _ in runs.said[number]] for number in range(len(fields))] == list(expected.values())


def test_scores_are_those_of_the_model_by_itself(base: Any, runs: Runs) -> None:
    asking = [Asked(number) for number in range(6)]
    for asked in asking:
        asked.top = 4
    runs.step(list(enumerate(asking)))
    while len(runs.ended) < len(asking):
        runs.step()
    for number, asked in enumerate(asking):
        tokens = [token for token, _ in runs.said[number]]
        whole = mx.array([asked.prompt + tokens])
        logits = base(whole)[0, len(asked.prompt) - 1 : -1]
        expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        for step, (token, (score, likeliest)) in enumerate(runs.said[number]):
            assert score == pytest.approx(expected[step, token], abs=1e-3)
            assert [value for _, value in likeliest] == pytest.approx(sorted(expected[step])[::-1][:4], abs=1e-3)
