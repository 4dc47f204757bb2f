"""An engine's share: who is let in, what is given up, and what is reported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_roster.core import Measured
from mlx_roster.engine.caches import cache_size
from mlx_roster.engine.loop import Engine
from mlx_roster.engine.memory import FORESEEN, GROWTH, LEAST_CHANGE
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from tests.engine import tiny
from tests.engine.sharing import ANSWER, ONE, PER_TOKEN, PROMPT, WIDE, ask, resting, said_alone, together
from tests.engine.tiny import Driven, Recorder, words

pytestmark = pytest.mark.usefixtures("swept")


def test_model_says_what_its_caches_take(alone: Any) -> None:
    assert cache_size(alone).bytes(1) == PER_TOKEN


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_run_than_the_share_has_room_for_and_all_say_what_they_say_alone(
    wide: Path, alone: Any, room: int
) -> None:
    with tiny.driven(wide, prompt_cache_entries=0) as engine:
        share = resting(engine) + room * ONE + ONE // 2
        engine.share(share)
        mx.reset_peak_memory()
        numbers = [ask(engine, seed) for seed in range(6)]
        engine.until_ended(*numbers)
        peak = mx.get_peak_memory()
        assert together(engine) == max(room, 1)
        for seed, number in enumerate(numbers):
            assert engine.tokens[number] == said_alone(alone, seed)
        # The first is let in without. A step has copies of its own.
        assert peak <= max(share, share - room * ONE + ONE) + ONE


def test_order_of_arrival_holds_for_who_waits_for_memory(roomy: Driven) -> None:
    roomy.share(resting(roomy) + 2 * ONE + ONE // 2)
    first = ask(roomy, 0)
    roomy.until_tokens(first, 2)
    large = roomy.ask(tiny.request(words(1, 450), ANSWER))
    small = ask(roomy, 2, 5)
    roomy.until_ended(first)
    assert {large, small}.isdisjoint(roomy.said.deltas)
    roomy.until_ended(large, small)
    assert roomy.said.deltas.keys() >= {large, small}


def test_each_row_is_as_long_as_the_longest(roomy: Driven) -> None:
    long = (450 + ANSWER + GROWTH) * PER_TOKEN
    roomy.share(resting(roomy) + long + ONE + ONE // 2)
    numbers = [roomy.ask(tiny.request(words(1, 450), ANSWER)), ask(roomy, 2)]
    roomy.until_ended(*numbers)
    assert together(roomy) == 1
    roomy.share(roomy.said.reports[0].active + 2 * long + ONE // 2)
    numbers = [roomy.ask(tiny.request(words(1, 450), ANSWER)), ask(roomy, 2)]
    since = len(roomy.said.frames)
    roomy.until_ended(*numbers)
    assert together(roomy, since) == 2


def test_endless_answers_are_foreseen_so_far(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path, **WIDE, max_position_embeddings=100_000)
    with tiny.driven(folder, prompt_cache_entries=0) as engine:
        engine.share(resting(engine) + 2 * (PROMPT + FORESEEN + GROWTH) * PER_TOKEN + ONE // 2)
        numbers = [ask(engine, seed, 90_000) for seed in range(3)]
        engine.until_tokens(numbers[1], 3)
        assert together(engine) == 2


def test_share_that_is_raised_lets_more_in_at_once(roomy: Driven) -> None:
    rest = resting(roomy)
    roomy.share(rest)
    numbers = [ask(roomy, seed, 200) for seed in range(4)]
    roomy.until_tokens(numbers[0], 3)
    assert together(roomy) == 1
    roomy.share(rest + 4 * (PROMPT + 200 + GROWTH) * PER_TOKEN + ONE // 2)
    roomy.until_tokens(numbers[3], 1)
    assert not any(roomy.said.ended(number) for number in numbers)
    roomy.until_ended(*numbers)
    assert together(roomy) == 4


def test_share_that_shrinks_lets_none_in_and_what_runs_goes_on(roomy: Driven, alone: Any) -> None:
    rest = resting(roomy)
    running = [ask(roomy, seed, 60) for seed in range(2)]
    roomy.until_tokens(running[1], 2)
    roomy.share(rest)
    waiting = ask(roomy, 2)
    roomy.until_ended(*running)
    assert waiting not in roomy.said.deltas
    for seed, number in enumerate(running):
        assert roomy.tokens[number] == said_alone(alone, seed, 60)
    roomy.until_ended(waiting)


def test_what_waits_for_memory_can_be_cancelled(roomy: Driven) -> None:
    roomy.share(resting(roomy))
    running, waiting, last = (ask(roomy, seed) for seed in range(3))
    roomy.until_tokens(running, 2)
    roomy.cancel(waiting)
    roomy.until_ended(running, last)
    assert waiting not in roomy.said.deltas


def test_adapters_wait_for_memory_too(wide: Path, tmp_path: Path) -> None:
    over = tiny.write_adapter(tmp_path, wide, seed=1)
    with tiny.driven(wide, prompt_cache_entries=0) as engine:
        before = [engine.answer(tiny.request(words(seed, PROMPT), ANSWER, over=over)) for seed in range(3)]
        engine.share(resting(engine))
        numbers = [engine.ask(tiny.request(words(seed, PROMPT), ANSWER, over=over)) for seed in range(3)]
        since = len(engine.said.frames)
        engine.until_ended(*numbers)
        assert together(engine, since) == 1
        assert [engine.said.text(number) for number in numbers] == before


def test_prompt_cache_is_given_up_for_another_sequence(wide: Path) -> None:
    with tiny.driven(wide) as engine:
        rest = resting(engine)
        for seed in range(4):
            engine.until_ended(ask(engine, seed, 2))
        kept = resting(engine) - rest
        assert engine.said.reports[-1].prompts == kept == engine._prefixes.nbytes > 4 * PROMPT * PER_TOKEN
        engine.share(rest + 2 * ONE + kept // 2)
        running, other = ask(engine, 10), ask(engine, 11)
        engine.until_tokens(other, 1)
        assert not engine.said.ended(running)
        assert 0 < engine._prefixes.nbytes <= kept // 2


def test_what_a_sequence_begins_with_is_not_lost_to_it(wide: Path, alone: Any, tmp_path: Path) -> None:
    over = tiny.write_adapter(tmp_path, wide, seed=1)
    with tiny.driven(wide) as engine:
        engine.share(resting(engine) + ONE + ONE // 8)
        for adapter, cached in ((None, 0), (None, PROMPT - 1), (over, 0), (over, PROMPT - 1)):
            number = engine.ask(tiny.request(words(1, PROMPT), ANSWER, over=adapter))
            engine.until_tokens(number, 1)
            assert len(engine._prefixes) == 0
            engine.until_ended(number)
            usage = engine.said.last(number).usage
            assert usage is not None
            assert usage.cached == cached
            assert adapter is not None or engine.tokens[number] == said_alone(alone, 1)


def test_prompt_cache_is_not_given_up_in_vain(wide: Path) -> None:
    with tiny.driven(wide) as engine:
        rest = resting(engine)
        engine.until_ended(ask(engine, 1, 2))
        kept = resting(engine) - rest
        engine.share(rest + kept + ONE)
        running, other = ask(engine, 10), ask(engine, 11)
        engine.until_tokens(running, 5)
        assert other not in engine.said.deltas
        assert engine._prefixes.nbytes == kept


def test_share_below_what_is_in_use_takes_the_prompt_cache_at_once(wide: Path) -> None:
    with tiny.driven(wide) as engine:
        rest = resting(engine)
        engine.until_ended(ask(engine, 1))
        assert resting(engine) > rest
        reports = len(engine.said.reports)
        engine.share(rest)
        engine.turn()
        assert len(engine.said.reports) == reports + 1
        last = engine.said.reports[-1]
        assert (last.active, last.prompts, last.cache) == (rest, 0, 0)
        # Where there is nothing to give up, and nothing to say.
        engine.share(rest + 1)
        engine.turn()
        assert len(engine.said.reports) == reports + 1


class Waiting(Recorder):
    """An output that another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Condition()

    def report(self, measured: Measured) -> None:
        with self.heard:
            super().report(measured)
            self.heard.notify_all()


def test_command_wakes_an_engine_that_rests(wide: Path) -> None:
    where, said = tiny.source(wide), Waiting()
    engine = Engine(load(where, lambda done, total: None), where, said, Adapters())

    def until(count: int) -> Measured:
        with said.heard:
            assert said.heard.wait_for(lambda: len(said.reports) >= count, 30)
            return said.reports[-1]

    def server() -> None:
        rest = until(1).active
        engine.submit(1, tiny.request(words(1, PROMPT), ANSWER))
        assert until(2).prompts > 0
        engine.share(rest)
        assert until(3).prompts == 0
        engine.stop()

    with engine:
        thread = threading.Thread(target=server)
        thread.start()
        engine.run()
        thread.join()


def test_measure_is_told_by_its_parts(wide: Path) -> None:
    with tiny.driven(wide, bank=1000, kv=10 * ONE) as engine:
        rest = resting(engine)
        assert engine.measured() == Measured(active=rest, cache=0, growth=1000 + 10 * ONE)
        running = ask(engine, 1)
        engine.until_tokens(running, 2)
        mx.synchronize()
        found = engine.measured()
        assert found.kv == GROWTH * PER_TOKEN
        assert found.kv <= found.active - rest <= found.kv + ONE // 2
        assert found.active + found.growth == rest + 1000 + 10 * ONE
        engine.until_ended(running)
        engine.rest()
        last = engine.said.reports[-1]
        assert last.kv == 0
        assert last.active == rest + last.prompts
        assert last.growth == 1000 + 10 * ONE, "what can be given up takes nothing of what is reserved"


def test_growth_is_never_less_than_nothing(wide: Path) -> None:
    with tiny.driven(wide, kv=1) as engine:
        engine.until_tokens(ask(engine, 1), 2)
        mx.synchronize()
        assert engine.measured().growth == 0


def test_engine_reports_a_great_change_while_it_runs(roomy: Driven) -> None:
    roomy.rest()
    running = ask(roomy, 1, 400)
    roomy.until_tokens(running, 3)
    (before,) = roomy.said.reports
    held = mx.zeros(LEAST_CHANGE // 2, dtype=mx.float32)
    mx.eval(held)
    while len(roomy.said.reports) == 1:
        roomy.turn()
    assert roomy.said.reports[1].active - before.active > LEAST_CHANGE
    assert roomy.said.reports[1].kv > 0
    assert not roomy.said.ended(running)


def test_engine_reports_at_once_that_it_exceeds_its_share(roomy: Driven) -> None:
    rest = resting(roomy)
    roomy.share(rest + GROWTH * PER_TOKEN + ONE)
    running = ask(roomy, 1, 400)
    roomy.until_tokens(running, 3)
    assert len(roomy.said.reports) == 1
    roomy.until_ended(running)
    assert not any(report.active > rest + 2 * ONE for report in roomy.said.reports)
    roomy.share(rest)
    ask(roomy, 2, 400)
    while len(roomy.said.reports) == 1:
        roomy.turn()
    assert roomy.said.reports[1].active > rest
