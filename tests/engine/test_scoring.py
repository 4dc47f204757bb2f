"""Log-probabilities of prompts and answers: the model's own, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from mlx_roster.core import Generation, Scored, Text
from mlx_roster.engine.scoring import MOST_TOKENS
from tests.engine import tiny
from tests.engine.sharing import resting
from tests.engine.tiny import Driven, words

#: Of different lengths, one of them a single token, one longer than a step takes in.
PROMPTS = [words(1, 9), words(2, 1), words(3, 40), words(4, 2), words(5, 700)]


@pytest.fixture(params=["llama", "gemma3_text", "mamba2"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / request.param, request.param, max_position_embeddings=2048)


@pytest.fixture
def engine(family: Path) -> Iterator[Driven]:
    with tiny.driven(family, max_adapters=16) as engine:
        yield engine


def scoring(prompt: str | Sequence[int], max_tokens: int, top: int, **more: Any) -> Generation:
    return replace(tiny.request(prompt, max_tokens, **more), echo=True, logprobs=top)


def judged(model: Any, ids: Sequence[int]) -> np.ndarray:
    """The log-probabilities of all tokens at each place, as the model alone gives them."""
    logits = model(mx.array([list(ids)])).astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]


def check(scored: Sequence[Scored], ids: Sequence[int], expected: np.ndarray, first: int, top: int) -> None:
    """`scored` are of `ids[first:]`. The place before a token is what says it."""
    assert [one.id for one in scored] == list(ids[first:])
    for place, one in enumerate(scored, first):
        if not place:
            assert (one.logprob, list(one.top)) == (None, [])
            continue
        row = expected[place - 1]
        assert one.logprob == pytest.approx(row[one.id], abs=1e-3)
        assert len(one.top) == top
        assert [each.logprob for each in one.top] == pytest.approx(sorted(row, reverse=True)[:top], abs=1e-3)
        for each in one.top:
            assert each.logprob == pytest.approx(row[each.id], abs=1e-3)
            # To the last bit: clients ask whether the token was the likeliest.
            assert each.id != one.id or each.logprob == one.logprob


def prompt_scores(engine: Driven, number: int) -> list[Scored]:
    return [one for delta in engine.said.deltas[number] if delta.aside for one in delta.aside.prompt]


def answer_scores(engine: Driven, number: int) -> list[Scored]:
    return [one for delta in engine.said.deltas[number] if delta.aside for one in delta.aside.scores]


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_scores_of_prompts_and_answers_are_what_the_model_alone_gives(
    engine: Driven, family: Path, max_tokens: int
) -> None:
    model = tiny.alone(family)
    tops = [0, 3, 1, 20, 5]
    numbers = [engine.ask(scoring(ids, max_tokens, top)) for ids, top in zip(PROMPTS, tops, strict=True)]
    plain = engine.ask(tiny.request(words(9, 12), 8))
    engine.until_ended(*numbers, plain)
    assert engine.tokens[plain] == tiny.greedy(model, words(9, 12), 8)
    for number, ids, top in zip(numbers, PROMPTS, tops, strict=True):
        answer = tiny.greedy(model, ids, max_tokens) if max_tokens else []
        assert [token for token in engine.tokens[number] if token is not None] == answer
        expected = judged(model, [*ids, *answer])
        check(prompt_scores(engine, number), ids, expected, 0, top)
        check(answer_scores(engine, number), [*ids, *answer], expected, len(ids), top)
        usage = engine.said.last(number).usage
        assert usage is not None
        assert (usage.prompt, usage.completion, usage.cached) == (len(ids), len(answer), 0)


def test_scores_are_of_the_model_as_its_adapter_changes_it(model: Path, adapters: list[Path], engine: Driven) -> None:
    with tiny.driven(model, max_adapters=4) as engine:
        numbers = [engine.ask(scoring(words(1, 20), 0, 2, over=over)) for over in (None, adapters[0], adapters[1])]
        engine.until_ended(*numbers)
        for number, over in zip(numbers, (None, adapters[0], adapters[1]), strict=True):
            expected = judged(tiny.alone(model, over), words(1, 20))
            check(prompt_scores(engine, number), words(1, 20), expected, 0, 2)


def test_answers_alone_are_scored_without_echo(model: Path) -> None:
    with tiny.driven(model) as engine:
        alone = tiny.alone(model)
        number = engine.ask(replace(tiny.request(words(1, 20), 6), logprobs=4))
        engine.until_ended(number)
        assert prompt_scores(engine, number) == []
        ids = [*words(1, 20), *tiny.greedy(alone, words(1, 20), 6)]
        check(answer_scores(engine, number), ids, judged(alone, ids), 20, 4)
        assert [one.logprob for one in answer_scores(engine, number)] == [
            one.top[0].logprob for one in answer_scores(engine, number)
        ]


def test_echo_says_the_prompt_first(model: Path) -> None:
    with tiny.driven(model) as engine:
        said = engine.answer(tiny.request("hello world"))
        assert engine.answer(replace(tiny.request("hello world"), echo=True)) == "hello world" + said
        assert engine.answer(replace(tiny.request("hello world", 0), echo=True)) == "hello world"
        assert engine.answer(scoring("hello world", 0, 1)) == "hello world"
        ids = engine.tokenizer.encode("hello world")
        assert engine.answer(replace(tiny.request(ids, 0), echo=True)) == "hello world"


def test_a_prompt_being_scored_can_be_dropped_and_harms_no_other(model: Path, tmp_path: Path) -> None:
    long = tiny.write_model(tmp_path / "long", max_position_embeddings=8192)
    with tiny.driven(long) as engine:
        first, second = (engine.ask(scoring(words(seed, 3000), 0, 0)) for seed in (1, 2))
        waiting = engine.ask(scoring(words(3, 3000), 0, 0))
        plain = engine.ask(tiny.request(words(4, 10), 30))
        engine.until_tokens(plain, 2)
        engine.cancel(first)
        engine.cancel(waiting)
        engine.turn()
        said = len(engine.said.deltas[first])
        engine.until_ended(second, plain)
        expected = judged(tiny.alone(long), words(2, 3000))
        check(prompt_scores(engine, second), words(2, 3000), expected, 0, 0)
        assert len(engine.said.deltas[first]) == said
        assert not engine.said.ended(waiting)
        # As they are found, and not all in one frame, which would hold up everybody else.
        assert max(len(delta.aside.prompt) for delta in engine.said.deltas[second] if delta.aside) <= MOST_TOKENS
        engine.rest()
        assert engine.measured().kv == 0


def test_text_of_scored_tokens_is_exact(model: Path) -> None:
    text = "Übung 🎉 naïve"
    with tiny.driven(model) as engine:
        number = engine.ask(Generation(Text(text), 0, echo=True, logprobs=0))
        engine.until_ended(number)
        assert b"".join(one.text for one in prompt_scores(engine, number)).decode() == text


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("entries", [0, 32])
def test_what_a_running_sequence_began_with_is_held_once(tmp_path: Path, entries: int) -> None:
    long = tiny.write_model(tmp_path / "long", max_position_embeddings=8192)
    with tiny.driven(long, prompt_cache_entries=entries) as engine:
        rest = resting(engine)
        scored = engine.ask(scoring(words(1, 2000), 50, 1))
        forked = [*range(2, 5)]
        engine.ask(replace(tiny.request(words(2, 2000), 50), n=3))
        engine._numbers += 2
        for number in (scored, *forked):
            while not answered(engine, number):
                engine.turn()
        engine._prefixes.clear()
        held = engine.measured()
        # Four of one length: a second copy of one of them would be a quarter more.
        assert held.active - rest - held.kv < held.kv / 4 / 4


def answered(engine: Driven, number: int) -> bool:
    return sum(not delta.aside or bool(delta.aside.scores) for delta in engine.said.deltas.get(number, [])) > 1
