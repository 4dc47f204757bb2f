"""The frames between the server process and a worker: msgpack, each behind its length (4 bytes, big endian).

Both sides import this file; a frame that does not decode means the peer is broken and ends the connection.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from mlx_roster.core import Capabilities, Counters, Delta, Device, Generation, Limits, Measured, ModelSource

_LENGTH = struct.Struct(">I")

#: No honest frame comes near: the largest is a Submit with a prompt at the server's request limit.
MAX_FRAME = 256 * 2**20


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first command to a spare, and given once: from now on it holds this model."""

    source: ModelSource


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Start `generation.n` sequences. `sequence` is the first one's number; the others' follow. All are chosen by the
    server, unique for the worker's life."""

    sequence: int
    generation: Generation


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Drop a sequence within one step. Unknown ids are ignored: the sequence may just have ended."""

    sequence: int


class Share(msgspec.Struct, frozen=True, tag="share"):
    """The worker may take so many bytes from now on. Until it is told, that is its source's `memory`."""

    size: int


class Limit(msgspec.Struct, frozen=True, tag="limit"):
    """Live by these limits from now on. What was pinned is so no longer."""

    limits: Limits


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Exit. Nothing is running any more, or nobody wants it."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A fresh worker has imported mlx and can take a Load."""

    pid: int
    device: Device
    versions: dict[str, str]


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A load goes on: `done` of `total` bytes of weights are in memory."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and the worker takes Submits."""

    measured: Measured
    capabilities: Capabilities


class LoadError(msgspec.Struct, frozen=True, tag="load_error"):
    """The load failed; the worker exits after saying so. `message` may be shown to clients."""

    message: str
    out_of_memory: bool = False


class Step(msgspec.Struct, frozen=True, tag="step"):
    """All that one decode step produced."""

    deltas: list[Delta]


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A sequence that cannot start, or cannot go on. `code` is one of `errors.py`."""

    sequence: int
    code: str
    message: str
    param: str | None = None


class Report(msgspec.Struct, frozen=True, tag="report"):
    """The worker's memory as it is now: it has gone idle, or has come to hold much more or less than it said."""

    measured: Measured


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """What the worker counts, as it is now: before a sequence's last Delta, when it has gone idle, when it is told to
    stop, and once a second while it is at work."""

    counters: Counters


class Pulse(msgspec.Struct, frozen=True, tag="pulse"):
    """How it is with a worker that has something to do; once a second, and a last time when all is done.

    `heard`: how many Submits have come so far. `stuck`: for how many seconds the one of its threads that has been at
    one thing for the longest has been at it, None where none has anything to do.
    """

    heard: int
    stuck: float | None = None


Command = Load | Submit | Cancel | Share | Limit | Stop
Event = Hello | Progress | Ready | LoadError | Step | Rejected | Report | Counted | Pulse

_encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(Command)
event_decoder = msgspec.msgpack.Decoder(Event)

T = TypeVar("T")


class FrameError(Exception):
    """The byte stream is not ours: a length out of range or a payload that does not decode."""


def pack(message: Command | Event) -> bytes:
    """One frame, ready to send."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Unpacker:
    """Cuts a byte stream into frame payloads. Not thread-safe; feed it from one reader."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that `chunk` completes, in order. Raises FrameError."""
        self._buffer += chunk
        payloads = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return payloads


def decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T:
    """One message. Raises FrameError where `payload` is not one."""
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(str(error)) from error
