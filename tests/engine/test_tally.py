"""What an engine counts of its work, and when it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlx_roster.core import Counters
from tests.engine import tiny
from tests.engine.tiny import Driven

PROMPT = [17 + 3 * place for place in range(40)]


@pytest.fixture
def engine(model: Path) -> Iterator[Driven]:
    with tiny.driven(model, max_adapters=2) as engine:
        yield engine


def after(engine: Driven, *prompts: list[int], **options: Any) -> Counters:
    """What has been said by the time that these are answered."""
    engine.until_ended(*(engine.ask(tiny.request(prompt, 5, **options)) for prompt in prompts))
    return engine.said.counters


def test_steps_and_prompts(engine: Driven) -> None:
    first = after(engine, PROMPT)
    assert first.steps >= 5
    assert (first.queried, first.hits) == (len(PROMPT), 0)
    second = after(engine, PROMPT)
    assert second.steps > first.steps
    assert (second.queried, second.hits) == (2 * len(PROMPT), len(PROMPT) - 1)
    assert second.prompts > 0


def test_a_prompt_of_several_choices_is_looked_up_once(engine: Driven) -> None:
    generation = msgspec.structs.replace(tiny.request(PROMPT, 3), n=3)
    engine.until_ended(*range((first := engine.ask(generation)), first + 3))
    assert engine.said.counters.queried == len(PROMPT)


def test_nothing_is_looked_up_where_nothing_is_kept(model: Path) -> None:
    with tiny.driven(model, prompt_cache_entries=0) as engine:
        assert after(engine, PROMPT).queried == 0


def test_adapters_come_and_go(engine: Driven, adapters: list[Path]) -> None:
    found = []
    for over in (adapters[0], adapters[1], adapters[0], adapters[2], adapters[1]):
        counters = after(engine, PROMPT, over=over)
        found.append((counters.placed, counters.displaced, counters.filled))
    assert counters.slots == 2
    assert found == [(1, 0, 1), (2, 0, 2), (2, 0, 2), (3, 1, 2), (4, 2, 2)]


def test_who_runs_and_who_waits(model: Path) -> None:
    with tiny.driven(model, max_concurrency=2) as engine:
        short = engine.ask(tiny.request(PROMPT, 3))
        others = [engine.ask(tiny.request([one, *PROMPT], 100)) for one in range(3)]
        engine.until_ended(short)
        assert (engine.said.counters.running, engine.said.counters.waiting) == (1, 2)
        for other in others:
            engine.cancel(other)
        engine.rest()
        assert (engine.said.counters.running, engine.said.counters.waiting, engine.said.counters.kv) == (0, 0, 0)


def test_a_rest_says_all(engine: Driven) -> None:
    gone = engine.ask(tiny.request(PROMPT, 100))
    engine.until_tokens(gone, 2)
    engine.said.counters = Counters()  # whatever it has said by now
    engine.cancel(gone)
    engine.rest()
    assert engine.said.counters.queried == len(PROMPT)
    assert engine.said.counters == engine.counters()


def test_sums_of_two_workers() -> None:
    one = Counters(*range(1, 13))
    assert one + one == Counters(*(2 * number for number in range(1, 13)))
    assert one.done == Counters(steps=1, queried=2, hits=3, placed=4, displaced=5)
