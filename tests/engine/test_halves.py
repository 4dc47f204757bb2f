"""Half a character: JSON can say one, text cannot have it, and no frame takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_roster.core import Aside, CallDelta, Delta
from mlx_roster.engine.tools import Calls, Parsed, Reader
from mlx_roster.engine.written import Written
from mlx_roster.errors import InternalError
from mlx_roster.workers import wire
from tests.engine import tiny
from tests.engine.tiny import Recorder


def written(calls: Calls) -> Reader:
    return Written(calls, "<tool_call>", ("</tool_call>",))


def parsed(calls: Calls) -> Reader:
    return Parsed(calls, json.loads, "<tool_call>", ("</tool_call>",), ())


@pytest.mark.parametrize("reader", [written, parsed])
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (r'{"name": "f", "arguments": {"a": "\ud83d"}}', r'{"a": "\ud83d"}'),
        (r'{"name": "f", "arguments": "{\"a\": \"\ud83d\"}"}', r'{"a": "\ud83d"}'),
        (r'{"name": "get\ud83d", "arguments": {}}', None),
    ],
)
def test_calls_with_half_a_character_go_into_a_frame(
    reader: Callable[[Calls], Reader], call: str, arguments: str | None
) -> None:
    calls = Calls(parallel=True)
    ended = reader(calls).add(call + "</tool_call>")
    assert ended is not None
    said = calls.take()
    assert [delta.arguments for delta in said] == ([] if arguments is None else [arguments])
    # What is no call is said as it is, and that was text.
    assert ended.raw.startswith("<tool_call>") == (arguments is None)
    wire.pack(wire.Step([Delta(1, ended.raw, aside=Aside(calls=said))]))


class Frames(Recorder):
    """Takes what goes into a frame."""

    def step(self, deltas: list[Delta]) -> None:
        wire.pack(wire.Step(deltas))
        super().step(deltas)


class Halved:
    """A voice whose every word is half a character."""

    stopped = called = False
    reasoning = 0

    def add(self, token: int) -> str:
        return "\ud83d"

    def finish(self, ended: bool = False) -> str:
        return ""

    def aside(self) -> tuple[str, list[CallDelta]] | None:
        return None


def test_what_goes_into_no_frame_ends_its_own_sequence_only(model: Path) -> None:
    with tiny.driven(model, said=Frames()) as engine:
        other = engine.ask(tiny.request("hello world", 12))
        engine.until_tokens(other, 1)
        halved = engine.ask(tiny.request("hello", 100))
        while halved not in engine._scheduler._running:
            engine.turn()
        engine._scheduler._running[halved].voice = Halved()
        engine.until_ended(other, halved)
        assert isinstance(engine.said.errors[halved], InternalError)
        alone = tiny.solo(model, engine.tokenizer.encode("hello world"), 12)
        assert engine.said.text(other) == tiny.spoken(engine, alone)
