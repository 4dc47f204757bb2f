"""Several sequences of one prompt: it is computed once, and each says what it would have said alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mlx_roster.core import AdapterSource, Generation, Sampling
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.scheduler import Scheduler
from mlx_roster.engine.sequences import Adapter, Cancel, Fork, Sequence, Token
from mlx_roster.engine.text import TextStream
from mlx_roster.tensors import AdapterWeights
from tests.engine import tiny
from tests.engine.test_scheduler import Letters, ids
from tests.engine.tiny import Driven, words

LONG = words(1, 1500)


@pytest.fixture(params=["llama", "mamba2"])
def long(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / request.param, request.param, max_position_embeddings=4096)


def several(n: int, seed: int | None = 7, max_tokens: int = 12) -> Generation:
    return replace(tiny.request(LONG, max_tokens, temperature=1.0, seed=seed), n=n)


def ask(engine: Driven, generation: Generation) -> list[int]:
    first = engine.ask(generation)
    engine._numbers += generation.n - 1
    return list(range(first, first + generation.n))


def prefilled(engine: Driven) -> int:
    """Tokens of prompts that have gone through the model."""
    return int(engine._batch._generator._counters.prompt_tokens)


@pytest.mark.parametrize("entries", [0, 32])
@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_one_prompt_is_computed_once_for_all_its_sequences(long: Path, entries: int, concurrency: int) -> None:
    with tiny.driven(long, prompt_cache_entries=entries, max_concurrency=concurrency) as engine:
        numbers = ask(engine, several(5))
        engine.until_ended(*numbers)
        # The generator counts what it takes in together, which is all of a prompt but its last token.
        assert prefilled(engine) == len(LONG) - 1
        texts = [engine.said.text(number) for number in numbers]
        assert len(set(texts)) > 1
        usages = [engine.said.last(number).usage for number in numbers]
        assert {usage and (usage.prompt, usage.cached) for usage in usages} == {(len(LONG), 0)}
    with tiny.driven(long, prompt_cache_entries=0) as engine:
        assert engine.answer(several(1)) == texts[0]
        assert [engine.said.text(number) for number in again(engine, several(3))] == texts[:3]


def again(engine: Driven, generation: Generation) -> list[int]:
    numbers = ask(engine, generation)
    engine.until_ended(*numbers)
    return numbers


def test_a_cached_prompt_is_nobody_s_to_compute(long: Path) -> None:
    with tiny.driven(long) as engine:
        first = again(engine, several(2))
        numbers = again(engine, several(4))
        assert [engine.said.text(number) for number in numbers[:2]] == [engine.said.text(number) for number in first]
        cached = {usage.cached for usage in (engine.said.last(number).usage for number in numbers) if usage}
        assert cached == {len(LONG) - 1}


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_if_the_first_is_dropped_another_computes_the_prompt(long: Path, turns: int) -> None:
    with tiny.driven(long, prompt_cache_entries=0) as engine:
        expected = [engine.said.text(number) for number in again(engine, several(3))]
        numbers = ask(engine, several(3))
        for _ in range(turns):
            engine.turn()
        engine.cancel(numbers[0])
        engine.until_ended(*numbers[1:])
        assert [engine.said.text(number) for number in numbers[1:]] == expected[1:]


def test_unseeded_sequences_differ(model: Path) -> None:
    with tiny.driven(model) as engine:
        numbers = again(engine, replace(tiny.request(words(1, 5), 20, temperature=1.0), n=4))
        assert len({engine.said.text(number) for number in numbers}) == 4


def test_sequences_of_one_prompt_can_have_an_adapter(model: Path, adapters: list[Path]) -> None:
    with tiny.driven(model, prompt_cache_entries=0) as engine:
        asked = tiny.request(words(1, 30), 10, over=adapters[0])
        numbers = again(engine, replace(asked, n=3))
        assert {engine.said.text(number) for number in numbers} == {engine.answer(asked)}


@pytest.mark.usefixtures("swept")
def test_no_caches_are_held_once_all_have_begun(long: Path) -> None:
    with tiny.driven(long, prompt_cache_entries=0) as engine:
        again(engine, several(4))
        engine.rest()
        before = engine.measured().active
        again(engine, several(4))
        engine.rest()
        assert engine.measured().active == before


def forked(count: int, over: Adapter | None = None) -> list[Sequence]:
    fork = Fork(count)
    prompt = Prompt.of([1, 2, 3])
    return [
        Sequence(number, prompt, 10, Sampling(), TextStream(Letters(), ()), over, fork=fork) for number in range(count)
    ]


def test_heirs_wait_for_their_leader_and_hold_nobody_up() -> None:
    it = Scheduler(8, 2)
    family = forked(3)
    stranger = Sequence(9, Prompt.of([1]), 10, Sampling(), TextStream(Letters(), ()))
    for one in (*family, stranger):
        it.apply(one)
    assert ids(it.schedule().admit) == [0, 9]
    assert ids(it.schedule().admit) == []
    assert family[0].fork is not None
    family[0].fork.caches = "caches"
    assert ids(it.schedule().admit) == [1, 2]
    assert [one.prefix for one in family] == [None, "caches", "caches"]
    assert family[0].fork.caches is None


def test_leader_that_leaves_is_followed_by_another() -> None:
    it = Scheduler(8, 2)
    for one in forked(3):
        it.apply(one)
    assert ids(it.schedule().admit) == [0]
    it.apply(Cancel(0))
    assert ids(it.schedule().admit) == [1]
    it.fold([Token(1, 1, "length")])
    assert ids(it.schedule().admit) == [2]


def test_leader_whose_adapter_cannot_be_placed_takes_nobody_s_place() -> None:
    it = Scheduler(8, 2)
    over = Adapter("a", AdapterSource("a", "/a"), AdapterWeights("a", "a", {}, {}, 0))
    for one in forked(2, over):
        it.apply(one)
    plan = it.schedule()
    assert [one.id for one in it.unplaced(plan, "a")] == [0]
    assert ids(it.schedule().admit) == [1]


def test_all_heirs_dropped_means_nothing_is_kept() -> None:
    it = Scheduler(8, 2)
    family = forked(2)
    for one in family:
        it.apply(one)
    it.schedule()
    assert family[0].fork is not None
    family[0].fork.caches = "caches"
    it.apply(Cancel(1))
    assert family[0].fork.caches is None
