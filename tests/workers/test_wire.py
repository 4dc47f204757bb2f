"""Frames: whatever the chunks, the same messages; whatever the bytes, a message or FrameError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.core import Chat, Delta, Generation, Limits, Usage
from mlx_roster.workers import wire

MESSAGES: list[wire.Command] = [
    wire.Submit(1, Generation(Chat([{"role": "user", "content": "hi 🙂"}]), max_tokens=5, stop=("a",))),
    wire.Cancel(1),
    wire.Share(2**40),
    wire.Limit(Limits(max_concurrency=3, max_context=None, bank=5)),
    wire.Stop(),
]


@given(st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_chunking(cuts: list[int]) -> None:
    stream = b"".join(map(wire.pack, MESSAGES))
    unpacker, found, at = wire.Unpacker(), [], 0
    while at < len(stream):
        step = cuts[at % len(cuts)]
        found += unpacker.feed(stream[at : at + step])
        at += step
    assert [wire.decode(wire.command_decoder, payload) for payload in found] == MESSAGES


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_frame_error(junk: bytes) -> None:
    unpacker = wire.Unpacker()
    try:
        for payload in unpacker.feed(junk):
            wire.decode(wire.event_decoder, payload)
    except wire.FrameError:
        pass


def test_a_length_out_of_range_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(wire.FrameError):
        wire.Unpacker().feed(b"\xff\xff\xff\xff")


def test_a_step_is_small() -> None:
    """A delta is an array, not a map: what is sent for each token of each sequence is a dozen bytes and its text."""
    running = wire.pack(wire.Step([Delta(sequence, " the") for sequence in range(16)]))
    assert len(running) < 16 * 12 + 20
    last = wire.Step([Delta(1, "", "stop", Usage(10, 5))])
    assert wire.decode(wire.event_decoder, wire.pack(last)[4:]) == last
