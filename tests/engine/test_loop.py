"""The engine as a worker uses it: requests in, frames out, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_roster.core import AdapterSource, Capabilities, Chat, Generation, Limits, Measured, Sampling, Text, Tokens
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import AdapterIncompatible, ContextLengthExceeded, InvalidRequest, RosterError
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.tensors import AdapterWeights, LoraPair, Targets
from tests.engine import tiny
from tests.engine.tiny import Driven

PROMPT = [40, 41, 42, 43]


def test_answer_is_what_mlx_lm_says(engine: Driven, model: Path) -> None:
    tokens = tiny.solo(model, PROMPT, 20)
    assert engine.answer(tiny.request(PROMPT, 20)) == tiny.spoken(engine, tokens)


def test_capabilities(engine: Driven, model: Path) -> None:
    variables = ("add_generation_prompt", "messages")
    assert engine.capabilities == Capabilities(321, context=512, adapters=True, template=variables)
    with tiny.driven(model, max_adapters=0, max_context=100) as bare:
        assert bare.capabilities == Capabilities(321, context=100, adapters=False, template=variables)


def test_usage_counts_prompt_and_completion(engine: Driven) -> None:
    sequence = engine.ask(tiny.request(PROMPT, 5))
    engine.until_ended(sequence)
    last = engine.said.last(sequence)
    assert last.finish == "length"
    assert last.usage is not None
    assert (last.usage.prompt, last.usage.completion, last.usage.cached) == (4, 5, 0)


def test_all_deltas_of_a_step_come_in_one_frame(engine: Driven) -> None:
    sequences = [engine.ask(tiny.request(PROMPT, 30)) for _ in range(3)]
    engine.until_ended(*sequences)
    full = [frame for frame in engine.said.frames if len(frame) == 3]
    assert len(full) > 20
    assert all({delta.sequence for delta in frame} == set(sequences) for frame in full)


def test_more_sequences_than_may_run_wait_their_turn(model: Path) -> None:
    with tiny.driven(model, max_concurrency=2) as engine:
        sequences = [engine.ask(tiny.request(PROMPT, 4)) for _ in range(7)]
        engine.until_ended(*sequences)
        assert max(map(len, engine.said.frames)) == 2
        assert len({engine.said.text(sequence) for sequence in sequences}) == 1


def test_cancel_takes_effect_within_one_step(engine: Driven) -> None:
    gone = engine.ask(tiny.request(PROMPT, 400))
    stays = engine.ask(tiny.request(PROMPT, 400))
    engine.until_tokens(gone, 3)
    engine.until_tokens(stays, 3)
    said = len(engine.said.deltas[gone])
    engine.cancel(gone)
    engine.turn()
    assert len(engine.said.deltas[gone]) == said
    engine.until_tokens(stays, 20)
    assert len(engine.said.deltas[gone]) == said
    assert "1 running, 0 waiting" in repr(engine)


def test_cancel_of_what_has_ended_or_never_was_is_ignored(engine: Driven) -> None:
    ended = engine.ask(tiny.request(PROMPT, 2))
    engine.until_ended(ended)
    engine.cancel(ended)
    engine.cancel(1234)
    assert engine.answer(tiny.request(PROMPT, 2))


def test_cancel_during_a_long_prompt_stops_its_prefill(model: Path) -> None:
    with tiny.driven(model, max_context=None) as engine:
        long = engine.ask(tiny.request([40] * 500, 10))
        other = engine.ask(tiny.request(PROMPT, 3))
        engine.cancel(long)
        engine.until_ended(other)
        engine.rest()
        assert long not in engine.said.deltas


class Blocked(Adapters):
    """An adapter reader that waits to be let on: preparation that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.let_on = threading.Event()

    def known(self, source: AdapterSource) -> str | None:
        self.reached.set()
        assert self.let_on.wait(30)
        return super().known(source)


def test_request_without_an_adapter_waits_for_no_file(model: Path, adapters: list[Path]) -> None:
    where = tiny.source(model)
    reader = Blocked()
    with Driven(load(where, lambda done, total: None), where, reader) as engine:
        slow = engine.ask(tiny.request(PROMPT, 5, over=adapters[0]))
        assert reader.reached.wait(30)
        assert engine.answer(tiny.request(PROMPT, 5))
        reader.let_on.set()
        engine.until_ended(slow)


def test_cancel_overtakes_a_request_that_is_being_prepared(model: Path, adapters: list[Path]) -> None:
    where = tiny.source(model)
    reader = Blocked()
    with Driven(load(where, lambda done, total: None), where, reader) as engine:
        slow = engine.ask(tiny.request(PROMPT, 5, over=adapters[0]))
        next_one = engine.ask(tiny.request(PROMPT, 5))
        assert reader.reached.wait(30)
        engine.cancel(slow)
        reader.let_on.set()
        engine.until_ended(next_one)
        engine.rest()
        assert slow not in engine.said.deltas
        assert slow not in engine.said.errors


def test_stop_string_is_never_emitted(engine: Driven) -> None:
    whole = engine.answer(tiny.request(PROMPT, 40))
    stop = whole[12:15]
    cut = whole[: whole.index(stop)]
    sequence = engine.ask(tiny.request(PROMPT, 40, stop=(stop, "never said")))
    engine.until_ended(sequence)
    assert engine.said.text(sequence) == cut
    last = engine.said.last(sequence)
    assert last.finish == "stop"
    assert last.usage is not None
    assert last.usage.completion < 40


def test_seed_gives_the_same_text_alone_and_among_others(engine: Driven, adapters: list[Path]) -> None:
    mine = tiny.request(PROMPT, 25, temperature=1.1, top_p=0.95, seed=7)
    alone = engine.answer(mine)
    assert engine.answer(mine) == alone
    others = [engine.ask(tiny.request([50 + row] * 5, 15 + row, temperature=1.0, top_k=row)) for row in range(5)]
    among = engine.ask(mine)
    late = [engine.ask(tiny.request(PROMPT, 12, over=over, temperature=0.5)) for over in adapters[:3]]
    engine.until_ended(among, *others, *late)
    assert engine.said.text(among) == alone
    assert engine.answer(tiny.request(PROMPT, 25, temperature=1.1, top_p=0.95, seed=8)) != alone


def test_without_a_seed_answers_differ(engine: Driven) -> None:
    sequences = [engine.ask(tiny.request(PROMPT, 20, temperature=1.5)) for _ in range(4)]
    engine.until_ended(*sequences)
    assert len({engine.said.text(sequence) for sequence in sequences}) == 4


def test_prompt_over_the_context_is_rejected(engine: Driven) -> None:
    with pytest.raises(ContextLengthExceeded):
        engine.answer(tiny.request([40] * 512, 5))
    assert engine.answer(tiny.request([40] * 511, 5)) is not None


HOSTILE: list[Generation] = [
    tiny.request([10**9]),
    tiny.request([-1]),
    tiny.request([]),
    tiny.request(""),
    tiny.request(PROMPT, 0),
    tiny.request(PROMPT, 3, stop=("",)),
    tiny.request(PROMPT, 3, stop=tuple(f"stop {index}" for index in range(10_000))),
    tiny.request(PROMPT, 3, temperature=1e-30),
    tiny.request(PROMPT, 3, temperature=float("inf")),
    tiny.request(PROMPT, 3, temperature=float("nan")),
    tiny.request(PROMPT, 3, temperature=-1.0),
    tiny.request(PROMPT, 3, temperature=1.0, top_p=0.0),
    tiny.request(PROMPT, 3, temperature=1.0, top_p=-3.0, min_p=7.0),
    tiny.request(PROMPT, 3, temperature=1.0, top_k=2**62),
    tiny.request(PROMPT, 3, temperature=1.0, top_k=-5, seed=-(2**62)),
    tiny.request(PROMPT, 2**40),
    tiny.request("\ud800"),
    tiny.request("\0" * 10),
    Generation(prompt=Chat([]), max_tokens=3),
    Generation(prompt=Chat([{}]), max_tokens=3),
    Generation(prompt=Chat([{"role": None, "content": {"a": [1]}}]), max_tokens=3),
    Generation(prompt=Chat([{"role": "user", "content": "<|im_end|>" * 50}]), max_tokens=3),
    Generation(prompt=Tokens([1, True, 2]), max_tokens=3),
    Generation(prompt=Tokens([[1, 2]]), max_tokens=3),  # type: ignore[list-item]
    Generation(prompt=Text(None), max_tokens=3),  # type: ignore[arg-type]
    Generation(prompt=Text("a"), max_tokens=3, adapter=AdapterSource("gone", "/nowhere/at/all")),
    Generation(prompt=Text("a"), max_tokens=3, adapter=AdapterSource("odd", "\0")),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_no_request_can_end_the_engine(engine: Driven, hostile: Generation) -> None:
    neighbour = engine.ask(tiny.request(PROMPT, 30))
    alone = engine.answer(tiny.request(PROMPT, 30))
    sequence = engine.ask(hostile)
    engine.until_ended(sequence, neighbour)
    error = engine.said.errors.get(sequence)
    assert error is None or ("/nowhere" not in error.message and "Error" not in error.message)
    assert engine.said.text(neighbour) == alone
    assert engine.answer(tiny.request(PROMPT, 30)) == alone


class Broken(Adapters):
    def known(self, source: AdapterSource) -> str | None:
        raise ZeroDivisionError(source.path)


def test_unexpected_error_in_preparing_rejects_that_request_only(model: Path, adapters: list[Path]) -> None:
    where = tiny.source(model)
    with Driven(load(where, lambda done, total: None), where, Broken()) as engine:
        with pytest.raises(RosterError) as refusal:
            engine.answer(tiny.request(PROMPT, 5, over=adapters[0]))
        assert refusal.value.code == "internal_error"
        assert str(adapters[0]) not in refusal.value.message
        assert engine.answer(tiny.request(PROMPT, 5))


class Faulty(nn.Module):
    """A model that fails when told to."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        self.fails = False

    def make_cache(self) -> Any:
        return self.inner.make_cache()

    def __call__(self, inputs: mx.array, cache: Any) -> Any:
        if self.fails:
            raise ValueError("as told")
        return self.inner(inputs, cache=cache)


@contextmanager
def faulty(model: Path) -> Iterator[tuple[Driven, Faulty]]:
    where = tiny.source(model)
    loaded = load(where, lambda done, total: None)
    wrapped = Faulty(loaded.model)
    with Driven(replace(loaded, model=wrapped), where) as engine:
        yield engine, wrapped


def test_step_that_fails_rejects_what_ran_and_the_engine_goes_on(model: Path) -> None:
    with faulty(model) as (engine, module):
        before = engine.answer(tiny.request(PROMPT, 8))
        running = engine.ask(tiny.request(PROMPT, 300))
        engine.until_tokens(running, 3)
        module.fails = True
        engine.until_ended(running)
        module.fails = False
        assert engine.said.errors[running].code == "internal_error"
        assert engine.answer(tiny.request(PROMPT, 8)) == before


def test_second_failure_in_a_row_ends_the_engine(model: Path) -> None:
    with faulty(model) as (engine, module):
        module.fails = True
        first = engine.ask(tiny.request(PROMPT, 8))
        engine.until_ended(first)
        second = engine.ask(tiny.request(PROMPT, 8))
        with pytest.raises(ValueError, match="as told"):
            engine.until_ended(second)


def test_failures_apart_from_each_other_are_survived(model: Path) -> None:
    with faulty(model) as (engine, module):
        for _ in range(3):
            module.fails = True
            engine.until_ended(engine.ask(tiny.request(PROMPT, 8)))
            module.fails = False
            assert engine.answer(tiny.request(PROMPT, 8))


def test_adapter_of_wrong_shape_is_422_naming_every_tensor_and_the_base_is_unharmed(
    engine: Driven, tmp_path: Path
) -> None:
    before = engine.answer(tiny.request(PROMPT, 10))
    neighbour = engine.ask(tiny.request(PROMPT, 60))
    engine.until_tokens(neighbour, 2)
    larger = tiny.write_model(tmp_path / "larger", hidden_size=64)
    with pytest.raises(AdapterIncompatible) as refusal:
        engine.answer(tiny.request(PROMPT, 5, over=tiny.write_adapter(tmp_path / "wrong", larger, seed=1)))
    for layer in (0, 1):
        for projection in ("q_proj", "v_proj"):
            for side in ("lora_a", "lora_b"):
                assert f"model.layers.{layer}.self_attn.{projection}.{side}" in refusal.value.message
    assert str(tmp_path) not in refusal.value.message
    engine.until_ended(neighbour)
    assert engine.answer(tiny.request(PROMPT, 10)) == before


def test_adapter_files_changed_on_disk_are_noticed(engine: Driven, model: Path, tmp_path: Path) -> None:
    folder = tiny.write_adapter(tmp_path / "mine", model, seed=1)
    first = engine.answer(tiny.request(PROMPT, 14, over=folder))
    other = tiny.write_adapter(tmp_path / "other", model, seed=2)
    expected = tiny.spoken(engine, tiny.solo(model, PROMPT, 14, other))
    for name in ("adapters.safetensors", "adapter_config.json"):
        shutil.copy(other / name, folder / name)
    assert engine.answer(tiny.request(PROMPT, 14, over=folder)) == expected != first


def test_two_names_for_the_same_contents_share_a_slot(model: Path, adapters: list[Path], tmp_path: Path) -> None:
    copied = shutil.copytree(adapters[0], tmp_path / "copy")
    with tiny.driven(model, max_adapters=1) as engine:
        sequences = [engine.ask(tiny.request(PROMPT, 20, over=over)) for over in (adapters[0], copied)]
        engine.until_ended(*sequences)
        assert max(map(len, engine.said.frames)) == 2


def test_adapter_that_lost_its_slot_while_its_sequence_waited_is_read_again(model: Path, adapters: list[Path]) -> None:
    with tiny.driven(model, max_adapters=1, max_concurrency=1) as engine:
        alone = [engine.answer(tiny.request(PROMPT, 10, over=over)) for over in adapters[:2]]
        running = engine.ask(tiny.request(PROMPT, 100))
        engine.until_tokens(running, 2)
        waiting = [engine.ask(tiny.request(PROMPT, 10, over=over)) for over in adapters[:2]]
        engine.until_ended(running, *waiting)
        assert [engine.said.text(sequence) for sequence in waiting] == alone


class Vanishing(Adapters):
    """An adapter that can be identified and, by the time it is read, is gone."""

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        raise AdapterIncompatible("it is gone", param="adapters")


def test_adapter_that_vanishes_is_a_refusal(model: Path, adapters: list[Path]) -> None:
    where = tiny.source(model)
    loaded = load(where, lambda done, total: None)
    with Driven(loaded, where, Vanishing()) as engine, pytest.raises(AdapterIncompatible, match="gone"):
        engine.answer(tiny.request(PROMPT, 5, over=adapters[0]))


class Curious(Faulty):
    """A model that looks into one of its linear layers."""

    def __call__(self, inputs: mx.array, cache: Any) -> Any:
        assert self.inner.model.layers[0].self_attn.q_proj.weight.ndim == 2
        return super().__call__(inputs, cache)


class Invented(Adapters):
    """An adapter for the layer that `Curious` looks into."""

    reads = 0

    def known(self, source: AdapterSource) -> str | None:
        return "invented"

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        self.reads += 1
        path = "inner.model.layers.0.self_attn.q_proj"
        target = targets[path]
        pair = LoraPair(mx.ones((target.inputs, 2)), mx.ones((2, target.outputs)))
        return AdapterWeights("a", "invented", {path: pair}, {}, 0)


def test_adapter_that_the_model_cannot_run_with_is_refused_and_neighbours_go_on(model: Path) -> None:
    where = tiny.source(model)
    loaded = load(where, lambda done, total: None)
    reader = Invented()
    with Driven(replace(loaded, model=Curious(loaded.model)), where, reader) as engine:
        alone = engine.answer(tiny.request(PROMPT, 30))
        neighbour = engine.ask(tiny.request(PROMPT, 30))
        for _ in range(3):
            with pytest.raises(AdapterIncompatible, match=r"(?s)adapter 'anywhere': .*q_proj"):
                engine.answer(tiny.request(PROMPT, 5, over=Path("/anywhere")))
        engine.until_ended(neighbour)
        assert engine.said.text(neighbour) == alone
    assert reader.reads == 1, "what the model cannot run with is not tried again"


def test_adapters_are_refused_where_there_are_no_slots(model: Path, adapters: list[Path]) -> None:
    with tiny.driven(model, max_adapters=0) as engine, pytest.raises(AdapterIncompatible, match="no adapters"):
        engine.answer(tiny.request(PROMPT, 5, over=adapters[0]))


def test_hot_loading_an_adapter_does_not_disturb_streams(engine: Driven, adapters: list[Path]) -> None:
    alone = engine.answer(tiny.request(PROMPT, 60))
    stream = engine.ask(tiny.request(PROMPT, 60))
    for over in adapters:
        engine.ask(tiny.request(PROMPT, 3, over=over))
        engine.turn()
    engine.until_ended(stream)
    assert engine.said.text(stream) == alone


@pytest.mark.usefixtures("swept")
def test_idle_engine_reports_once_and_holds_no_more_than_before(model: Path) -> None:
    with tiny.driven(model, prompt_cache_entries=0) as engine:
        engine.rest()
        (before,) = engine.said.reports
        engine.answer(tiny.request(PROMPT, 50))
        engine.rest()
        after = engine.said.reports[-1]
        assert after.active == before.active
        assert after.cache == 0


def test_run_ends_when_stopped_from_another_thread(engine: Driven) -> None:
    sequence = engine.ask(tiny.request(PROMPT, 400))
    waker = threading.Thread(target=engine.stop)
    waker.start()
    engine.run()
    waker.join()
    assert not engine.said.ended(sequence)


class Waking(tiny.Recorder):
    """An output that says when the engine is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = threading.Event()

    def report(self, measured: Measured) -> None:
        super().report(measured)
        self.idle.set()


def test_run_serves_and_waits_while_idle(model: Path) -> None:
    where = tiny.source(model)
    recorder = Waking()
    engine = Engine(load(where, lambda done, total: None), where, recorder, Adapters())

    def client() -> None:
        for sequence in (1, 2):
            recorder.idle.clear()
            engine.submit(sequence, tiny.request(PROMPT, 5))
            assert recorder.idle.wait(30)
        engine.stop()

    with engine:
        thread = threading.Thread(target=client)
        thread.start()
        engine.run()
        thread.join()
    assert recorder.ended(2)


def test_engine_that_is_never_closed_warns(model: Path) -> None:
    engine = tiny.driven(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.__del__()
    engine.close()
    assert [str(warning.message) for warning in caught] == [f"{engine!r} was never closed"]


def test_chat_is_answered(engine: Driven) -> None:
    chat = Generation(
        prompt=Chat([{"role": "user", "content": "hello"}]), max_tokens=6, sampling=Sampling(temperature=0)
    )
    ids = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=True
    )
    assert engine.answer(chat) == engine.answer(tiny.request(ids, 6))


def test_refusal_names_the_field(engine: Driven) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        engine.answer(tiny.request(PROMPT, 5, stop=("",)))
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", "stop")


def test_configs_of_the_tests_are_what_mlx_lm_writes(adapters: list[Path]) -> None:
    config = json.loads((adapters[0] / "adapter_config.json").read_text())
    assert set(config) == {"fine_tune_type", "num_layers", "lora_parameters"}


@pytest.mark.parametrize("rows", [2, 3])
def test_model_that_cannot_be_batched_takes_one_sequence_at_a_time(tmp_path: Path, rows: int) -> None:
    # mlx-lm's gemma2 fails over three sequences of unequal length, and mistakes two for its heads.
    model = tiny.write_model(tmp_path, "gemma2", head_dim=8, query_pre_attn_scalar=8, num_key_value_heads=2)
    prompts = [tiny.words(seed, 5 + 7 * seed) for seed in range(rows)]
    with tiny.driven(model) as engine:
        numbers = [engine.ask(tiny.request(prompt, 8)) for prompt in prompts]
        engine.until_ended(*numbers)
        assert [engine.tokens[number] for number in numbers] == [tiny.solo(model, prompt, 8) for prompt in prompts]
        engine.limit(Limits(max_concurrency=8))
        others = [engine.ask(tiny.request(prompt, 8)) for prompt in prompts]
        engine.until_ended(*others)
        assert max(map(len, engine.said.frames)) == 1
