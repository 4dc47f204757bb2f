"""The prefix cache in an engine: what is reused, what never is, and that nobody can tell by the answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step

from mlx_roster.core import Chat, Generation, Sampling, Usage
from mlx_roster.engine.routed import PREFILL_TOKENS
from mlx_roster.loaders.models import load
from tests.engine import tiny
from tests.engine.test_loop import faulty
from tests.engine.tiny import Driven, words

#: The windows keep the last tokens only, some prompts fitting in whole; the last has a state that is overwritten.
FAMILIES: list[tuple[str, dict[str, int]]] = [
    ("llama", {}),
    ("gemma3_text", {"sliding_window": 8}),
    ("gemma3_text", {"sliding_window": 64}),
    ("mamba2", {}),
]


@pytest.fixture(params=FAMILIES, ids=["llama", "window8", "window64", "mamba2"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, sizes = request.param
    return tiny.write_model(tmp_path / name, name, **sizes)


class Oracle:
    """What mlx-lm says alone: a model without adapters, or with."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.loaded: dict[Path | None, Any] = {}

    def __call__(self, prompt: Sequence[int], max_tokens: int, over: Path | None = None) -> list[int]:
        if over not in self.loaded:
            self.loaded[over] = tiny.alone(self.model, over)
        said: list[int] = []
        for token, _ in generate_step(mx.array(prompt), self.loaded[over], max_tokens=max_tokens):
            said.append(token)
            if token == 0:
                break
        return said


@pytest.fixture
def oracle(model: Path) -> Oracle:
    return Oracle(model)


def usage(engine: Driven, number: int) -> Usage:
    counted = engine.said.last(number).usage
    assert counted is not None
    return counted


def ask(engine: Driven, generation: Generation) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of its prompt were cached."""
    number = engine.ask(generation)
    engine.until_ended(number)
    return engine.tokens[number], usage(engine, number).cached


def test_same_prompt_and_next_turn_and_system_prompt_hit(engine: Driven, oracle: Oracle) -> None:
    system, first = words(1, 40), words(2, 9)
    answer, cached = ask(engine, tiny.request(system + first, 8))
    assert (answer, cached) == (oracle(system + first, 8), 0)
    again, cached = ask(engine, tiny.request(system + first, 8))
    assert (again, cached) == (answer, 48), "all but the last token"
    turn = [*system, *first, *answer, *words(3, 5)]
    assert ask(engine, tiny.request(turn, 8)) == (oracle(turn, 8), 57)
    other = system + words(4, 9)
    assert ask(engine, tiny.request(other, 8)) == (oracle(other, 8), 40)
    assert ask(engine, tiny.request(words(5, 9), 8)) == (oracle(words(5, 9), 8), 0)


def test_usage_is_exact(model: Path) -> None:
    class Counting(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner
            self.fed = 0

        def make_cache(self) -> Any:
            return self.inner.make_cache()

        def __call__(self, inputs: mx.array, cache: Any) -> Any:
            self.fed += inputs.size
            return self.inner(inputs, cache=cache)

    where = tiny.source(model)
    loaded = load(where, lambda done, total: None)
    counting = Counting(loaded.model)
    with Driven(replace(loaded, model=counting), where) as engine:
        for prompt in (words(1, 60), words(1, 60), words(1, 30), words(1, 61), words(2, 3), words(2, 1)):
            counting.fed = 0
            answer, cached = ask(engine, tiny.request(prompt, 5))
            assert counting.fed == len(prompt) - cached + len(answer)


def test_families_say_the_same_as_without(family: Path) -> None:
    """Joined with others, after what was cancelled and after a stop string."""
    oracle = Oracle(family)
    rng = random.Random(0)
    hits = 0
    with tiny.driven(family, prompt_cache_entries=6) as engine:
        known = [words(1, 40)]
        for turn in range(12):
            prompts = [[*rng.choice(known), *words(10 * turn + index, 1 + 3 * index)] for index in range(3)]
            asked = {engine.ask(tiny.request(prompt, 4 + turn % 3)): prompt for prompt in prompts}
            gone = engine.ask(tiny.request([*rng.choice(known), *words(turn, 4)], 50))
            engine.until_tokens(gone, 1 + turn % 2)
            engine.cancel(gone)
            engine.until_ended(*asked)
            for number, prompt in asked.items():
                assert engine.tokens[number] == oracle(prompt, 4 + turn % 3)
                counted = usage(engine, number)
                assert counted.cached < counted.prompt == len(prompt)
                hits += counted.cached > 0
                if len(prompt) < 120:
                    known.append([*prompt, *engine.tokens[number]])
        stopping = known[-1] + words(99, 2)
        said = oracle(stopping, 6)
        stop = tiny.spoken(engine, said)[1:3]
        stopped = engine.ask(tiny.request(stopping, 60, stop=(stop,)))
        engine.until_ended(stopped)
        after = [*stopping, *engine.tokens[stopped], *words(98, 3)]
        answer, cached = ask(engine, tiny.request(after, 6))
        assert (answer, cached) == (oracle(after, 6), len(stopping) + len(engine.tokens[stopped]))
    assert hits > 5


def test_prompt_that_was_cancelled_halfway_is_not_lost(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "long", max_position_embeddings=2048)
    prompt = words(1, PREFILL_TOKENS * 2 + 20)
    with tiny.driven(folder) as engine:
        gone = engine.ask(tiny.request(prompt, 5))
        while "1 running" not in repr(engine):
            engine.turn()
        engine.cancel(gone)
        again = engine.ask(tiny.request(prompt, 5))
        engine.until_ended(again)
        assert engine.tokens[again] == Oracle(folder)(prompt, 5)
        assert usage(engine, again).cached == PREFILL_TOKENS


def test_one_that_was_cancelled_before_it_was_computed_leaves_nothing(engine: Driven) -> None:
    ask(engine, tiny.request(words(1, 20), 2))
    kept = repr(engine._prefixes)
    gone = engine.ask(tiny.request(words(1, 30), 5))
    engine.cancel(gone)
    engine.rest()
    assert repr(engine._prefixes) == kept


def test_long_prompt_can_be_shared_while_its_answer_still_streams(engine: Driven, oracle: Oracle) -> None:
    system = words(1, 300)
    streaming = engine.ask(tiny.request(system + words(2, 5), 100))
    engine.until_tokens(streaming, 1)
    prompt = system + words(3, 5)
    answer, cached = ask(engine, tiny.request(prompt, 5))
    assert (answer, cached) == (oracle(prompt, 5), 300)
    engine.until_ended(streaming)
    assert engine.tokens[streaming] == oracle(system + words(2, 5), 100)
    assert len(engine._prefixes) == 2, "the answer's caches have taken the place of the prompt's"


def test_prompt_cache_is_never_shared_across_adapters_by_an_engine(
    engine: Driven, oracle: Oracle, adapters: list[Path]
) -> None:
    prompt = words(1, 30)
    for expected in (0, 29):
        for over in (None, *adapters[:3]):
            assert ask(engine, tiny.request(prompt, 8, over=over)) == (oracle(prompt, 8, over), expected)


def test_nor_after_a_name_is_re_added_with_other_weights(engine: Driven, model: Path, tmp_path: Path) -> None:
    prompt = words(1, 30)
    folder = tiny.write_adapter(tmp_path / "mine", model, seed=1)
    first, _ = ask(engine, tiny.request(prompt, 8, over=folder))
    running = engine.ask(tiny.request([*prompt, 5], 200, over=folder))
    engine.until_tokens(running, 2)
    other = tiny.write_adapter(tmp_path / "other", model, seed=2)
    was, now = Oracle(model), Oracle(model)
    assert was(prompt, 8, folder) == first
    tiny.overwrite_adapter(folder, other)
    answer, cached = ask(engine, tiny.request(prompt, 8, over=folder))
    assert (answer, cached) == (now(prompt, 8, folder), 0)
    assert answer != first
    engine.cancel(running)
    engine.turn()
    assert ask(engine, tiny.request([*prompt, 5, 6], 8, over=folder))[1] == 30, "what ran on is the old one's"
    assert engine.tokens[running] == was([*prompt, 5], 200, folder)[: len(engine.tokens[running])]


def test_system_prompt_and_history_are_kept_apart_where_caches_cannot_be_cut(shelf: Path) -> None:
    folder = tiny.write_model(shelf / "prefixes-chat", "mamba2")
    oracle = Oracle(folder)
    system = {"role": "system", "content": "the quick brown fox jumps over the lazy dog " * 8}
    first = {"role": "user", "content": "hello world, hello you " * 6}

    with tiny.driven(folder) as engine:

        def chat(*messages: dict[str, str]) -> tuple[int, int]:
            prompt = engine.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True)
            generation = Generation(Chat(list(messages)), 6, Sampling(temperature=0))
            answer, cached = ask(engine, generation)
            assert answer == oracle(prompt, 6)
            return cached, len(prompt)

        cached, whole = chat(system, first)
        assert cached == 0
        opening = len(engine.tokenizer.apply_chat_template([system], tokenize=True))
        cached, _ = chat(system, {"role": "user", "content": "Bär"})
        assert opening <= cached < whole
        asked = len(engine.tokenizer.apply_chat_template([system, first], tokenize=True))
        # Not what was answered: as with a model whose template leaves out what it has thought.
        assert chat(system, first, {"role": "assistant", "content": "no"}, first)[0] == asked
        assert chat(system, first)[0] == asked
        assert chat(first)[0] == 0


def test_seed_gives_the_same_cached_or_not(engine: Driven) -> None:
    prompt = words(1, 30)
    first = ask(engine, tiny.request(prompt, 20, temperature=1.5, seed=7))
    assert ask(engine, tiny.request(prompt, 20, temperature=1.5, seed=7)) == (first[0], 29)


def test_context_is_counted_with_what_is_cached(model: Path) -> None:
    with tiny.driven(model, max_context=50) as engine:
        assert len(ask(engine, tiny.request(words(1, 45), 30))[0]) <= 5
        number = engine.ask(tiny.request(words(1, 45), 30))
        engine.until_ended(number)
        assert usage(engine, number) == Usage(45, len(engine.tokens[number]), 44)
        assert len(engine.tokens[number]) <= 5


@pytest.mark.usefixtures("swept")
def test_engine_keeps_what_it_may_and_says_so(model: Path) -> None:
    with tiny.driven(model, prompt_cache_entries=3, prompt_cache_bytes=100 * 256) as engine:
        engine.rest()
        for seed in range(6):
            ask(engine, tiny.request(words(seed, 30), 1))
        engine.rest()
        before, after = engine.said.reports[0], engine.said.reports[-1]
        assert repr(engine._prefixes) == f"<Prefixes: 3 entries, {3 * 31 * 256} bytes>"
        assert after.active - before.active == engine._prefixes.nbytes
        assert ask(engine, tiny.request(words(5, 30), 1))[1] == 29
        assert ask(engine, tiny.request(words(0, 30), 1))[1] == 0
        ask(engine, tiny.request(words(7, 60), 1))
        assert engine._prefixes.nbytes <= 100 * 256
        engine._prefixes.clear()
        engine.rest()
        assert engine.said.reports[-1].active == before.active


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("off", [{"prompt_cache_entries": 0}, {"prompt_cache_bytes": 0}])
def test_cache_that_is_off_keeps_nothing(model: Path, off: dict[str, int]) -> None:
    with tiny.driven(model, **off) as engine:
        engine.rest()
        for _ in range(2):
            assert ask(engine, tiny.request(words(1, 300), 3))[1] == 0
        gone = engine.ask(tiny.request(words(1, 20), 50))
        engine.until_tokens(gone, 2)
        engine.cancel(gone)
        engine.rest()
        assert engine.said.reports[-1].active == engine.said.reports[0].active


@pytest.mark.usefixtures("swept")
def test_prefixes_are_what_is_given_up_first(model: Path) -> None:
    with tiny.driven(model) as engine:
        ask(engine, tiny.request(words(1, 100), 3))
        ask(engine, tiny.request(words(2, 20), 3))
        running = engine.ask(tiny.request(words(3, 100), 100))
        engine.until_tokens(running, 1)
        mx.synchronize()
        engine.share(mx.get_active_memory() - 100)
        engine.turn()
        assert len(engine._prefixes) < 2
        engine.until_ended(running)
        assert running not in engine.said.errors


def test_after_a_step_that_failed_nothing_of_before_is_trusted(model: Path) -> None:
    with faulty(model) as (engine, module):
        prompt = words(1, 30)
        answer, _ = ask(engine, tiny.request(prompt, 3))
        module.fails = True
        engine.until_ended(engine.ask(tiny.request(words(2, 30), 3)))
        module.fails = False
        assert ask(engine, tiny.request(prompt, 3)) == (answer, 0)


def test_any_conversations_over_any_adapters_say_what_they_say_alone(
    engine: Driven, oracle: Oracle, adapters: list[Path]
) -> None:
    """A tree of turns over two adapters and the base, in flight together, some of them given up."""
    rng = random.Random(1)
    overs = [None, *adapters[:2]]
    histories: list[tuple[Path | None, list[int]]] = [(over, words(7, 25)) for over in overs]
    flying: dict[int, tuple[Path | None, list[int], int]] = {}
    hits = checked = 0
    while checked < 60:
        if len(flying) < 5:
            over, history = rng.choice(histories)
            kept = history[: rng.randint(1, len(history))] if rng.random() < 0.5 else history
            prompt = [*kept, *words(rng.randrange(10**6), rng.randint(1, 20))][:400]
            most = rng.randint(1, 25)
            # Somebody else's history is as good a prompt, but nobody's cache.
            over = rng.choice(overs) if rng.random() < 0.3 else over
            flying[engine.ask(tiny.request(prompt, most, over=over))] = over, prompt, most
        for _ in range(rng.randint(1, 4)):
            engine.turn()
        if rng.random() < 0.15:
            gone = rng.choice(list(flying))
            engine.cancel(gone)
            del flying[gone]
        for number in [number for number in flying if engine.said.ended(number)]:
            over, prompt, most = flying.pop(number)
            assert engine.tokens[number] == oracle(prompt, most, over)
            assert usage(engine, number).cached < len(prompt)
            hits += usage(engine, number).cached > 0
            checked += 1
            histories.append((over, [*prompt, *engine.tokens[number]]))
    assert hits > 40
