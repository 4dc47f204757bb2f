"""Limits that change while an engine serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_roster.core import AdapterSource, Generation, Limits
from mlx_roster.engine.routed import PREFILL_TOKENS
from mlx_roster.errors import ContextLengthExceeded
from tests.engine import tiny
from tests.engine.sharing import PROMPT, ask, resting, said_alone, together
from tests.engine.tiny import Driven, words

pytestmark = pytest.mark.usefixtures("swept")


def test_limits_do_not_disturb_what_runs(roomy: Driven, alone: Any) -> None:
    numbers = [ask(roomy, seed, 200) for seed in range(3)]
    roomy.until_tokens(numbers[2], 5)
    for limits in (
        Limits(max_concurrency=1, max_context=10, prompt_cache_entries=0),
        Limits(max_concurrency=64, prompt_cache_bytes=0),
        Limits(max_concurrency=2),
    ):
        roomy.limit(limits)
        roomy.until_tokens(numbers[0], len(roomy.said.deltas[numbers[0]]) + 20)
    roomy.until_ended(*numbers)
    for seed, number in enumerate(numbers):
        assert roomy.tokens[number] == said_alone(alone, seed, 200)


def test_limit_does_not_hold_up_a_prompt_on_its_way_in(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path, max_position_embeddings=4096, eos_token_id=5000)
    with tiny.driven(folder) as engine:
        running = ask(engine, 1, 1000)
        engine.until_tokens(running, 2)
        joining = engine.ask(tiny.request(words(2, 3 * PREFILL_TOKENS), 3))
        while "2 running" not in repr(engine):
            engine.turn()
        engine.limit(Limits(max_concurrency=1))
        engine.until_ended(joining)
        assert not engine.said.ended(running)


def test_fewer_may_run_and_then_more(roomy: Driven) -> None:
    roomy.limit(Limits(max_concurrency=2))
    numbers = [ask(roomy, seed, 100) for seed in range(6)]
    roomy.until_tokens(numbers[1], 3)
    assert together(roomy) == 2
    roomy.limit(Limits(max_concurrency=5))
    roomy.until_tokens(numbers[4], 1)
    assert not any(roomy.said.ended(number) for number in numbers)
    roomy.limit(Limits(max_concurrency=1))
    since = len(roomy.said.frames)
    roomy.until_ended(*numbers)
    assert together(roomy, since) == 5
    assert len(roomy.said.frames[-1]) == 1


def test_prompt_cache_follows_its_limits_at_once(wide: Path) -> None:
    with tiny.driven(wide) as engine:
        rest = resting(engine)
        for seed in range(4):
            engine.until_ended(ask(engine, seed, 2))
        engine.rest()
        one = engine._prefixes.nbytes // 4
        for limits, left in (
            (Limits(prompt_cache_entries=3), 3),
            (Limits(prompt_cache_bytes=2 * one), 2),
            (Limits(prompt_cache_bytes=0), 0),
        ):
            engine.limit(limits)
            engine.turn()
            assert len(engine._prefixes) == left
            assert engine.said.reports[-1].prompts == left * one == engine.said.reports[-1].active - rest
        engine.limit(Limits())
        for cached in (0, PROMPT - 1):
            number = ask(engine, 1, 2)
            engine.until_ended(number)
            usage = engine.said.last(number).usage
            assert usage is not None
            assert usage.cached == cached


def test_reserve_follows_its_limits(wide: Path) -> None:
    with tiny.driven(wide, bank=10, kv=20) as engine:
        engine.rest()
        engine.limit(Limits(bank=1, kv=2))
        engine.turn()
        assert [report.growth for report in engine.said.reports] == [30, 3]


def test_context_follows_its_limit(wide: Path) -> None:
    with tiny.driven(wide) as engine:
        engine.limit(Limits(max_context=PROMPT))
        engine.turn()
        with pytest.raises(ContextLengthExceeded):
            engine.answer(tiny.request(words(1, PROMPT), 9))
        for context, length in ((PROMPT + 5, 5), (None, 9)):
            engine.limit(Limits(max_context=context))
            engine.turn()
            number = ask(engine, 1, 9)
            engine.until_ended(number)
            assert len(engine.tokens[number]) == length


def test_pinned_adapters_are_so_no_longer_until_their_next_use(wide: Path, tmp_path: Path) -> None:
    folders = [tiny.write_adapter(tmp_path / str(seed), wide, seed=seed) for seed in range(3)]

    def use(engine: Driven, number: int, *, pin: bool = False) -> None:
        generation = tiny.request(words(number, 10), 2)
        source = AdapterSource(str(number), str(folders[number]), pin)
        engine.answer(Generation(generation.prompt, 2, generation.sampling, adapter=source))

    with tiny.driven(wide, max_adapters=2) as engine:
        use(engine, 0, pin=True)
        use(engine, 1)
        assert "pinned [1]" in repr(engine)
        engine.limit(Limits())
        engine.turn()
        assert "pinned" not in repr(engine)
        use(engine, 2)
        use(engine, 1)
        use(engine, 0, pin=True)
        assert "pinned" in repr(engine)
