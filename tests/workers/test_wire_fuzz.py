"""What a broken or wicked peer may write: on both sides never anything but FrameError, and the end of that peer alone.

Each example is a seed, from which a hundred inputs are made: honest frames at wrong times, frames with some of their
bytes changed, missing or doubled, and noise. 10,000 inputs a run on each side.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_roster.core import (
    AdapterSource,
    Capabilities,
    Chat,
    Counters,
    Delta,
    Device,
    Generation,
    Limits,
    Measured,
    ModelSource,
    Sampling,
    Text,
    Usage,
)
from mlx_roster.errors import RosterError
from mlx_roster.workers import wire
from mlx_roster.workers.process import ProcessWorker

#: Inputs for each seed.
BATCH = 100

DEVICE = Device("a chip", "cpu", 2**34, 2**34)
SOURCE = ModelSource(name="atlas", path="/nowhere", memory=2**30)
CAPABILITIES = Capabilities(vocabulary=10, context=10, adapters=True, generation={"top_k": 3})

EVENTS: list[wire.Event] = [
    wire.Hello(1, DEVICE, {"mlx": "1"}),
    wire.Progress(1, 2),
    wire.Ready(Measured(3), CAPABILITIES),
    wire.LoadError("no", out_of_memory=True),
    wire.Step([Delta(1, "a"), Delta(2, "b", "stop", Usage(1, 2)), Delta(77, "whose?")]),
    wire.Rejected(1, "context_length_exceeded", "too long", "messages"),
    wire.Rejected(2, "nobody knows this code", "", None),
    wire.Report(Measured(1, 2, 3, 4, 5)),
    wire.Report(Measured(-1)),
    wire.Counted(Counters(steps=1)),
    wire.Pulse(1, 0.5),
    wire.Pulse(0, None),
    wire.Pulse(3, float("nan")),
]

COMMANDS: list[wire.Command] = [
    wire.Load(SOURCE),
    wire.Submit(1, Generation(Chat([{"role": "user", "content": "hi 🙂"}]), max_tokens=5, stop=("a",), n=2)),
    wire.Submit(2, Generation(Text("x"), max_tokens=1, sampling=Sampling(0.5), adapter=AdapterSource("a", "/a"))),
    wire.Cancel(1),
    wire.Share(2**40),
    wire.Limit(Limits(max_context=None, bank=5)),
    wire.Stop(),
]


def deep(honest: bytes, depth: int) -> bytes:
    """The frame with a field more, which nobody knows, and which is nested as deeply as that."""
    fields, payload = honest[4], honest[5:] + b"\xa1x" + b"\x91" * depth + b"\x03"
    return (1 + len(payload)).to_bytes(4, "big") + bytes([fields + 1]) + payload


def broken(random: random.Random, honest: bytes) -> bytes:
    """A frame as a peer that is out of its mind might write it."""
    frame = bytearray(honest)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(frame)) if frame else 0
        match random.randrange(6):
            case 0:
                frame[at : at + 1] = random.randbytes(1)
            case 1:
                del frame[at : at + random.randint(1, 8)]
            case 2:
                frame[at:at] = random.randbytes(random.randint(1, 8))
            case 3:
                # The length stays right, so that what is inside is looked at.
                inside = max(4, at)
                frame[inside : inside + 1] = random.randbytes(1) if inside < len(frame) else b""
            case 4:
                frame[:4] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x0f\xff\xff\xff", random.randbytes(4)])
            case 5:
                frame += bytes(frame)
    return bytes(frame)


def written(random: random.Random, honest: list[bytes]) -> bytes:
    """All that one peer writes."""
    parts = []
    for _ in range(random.randint(1, 5)):
        match random.randrange(8):
            case 0 | 1 | 2:
                parts.append(random.choice(honest))
            case 3:
                parts.append(random.randbytes(random.randint(0, 60)))
            case 4:
                parts.append(deep(random.choice(honest), random.choice([5, 500, 50_000])))
            case _:
                parts.append(broken(random, random.choice(honest)))
    return b"".join(parts)


class Child:
    """As much of a process as a worker's handle uses: it ends when it is killed."""

    pid, returncode = 1, None

    def __init__(self) -> None:
        self.stderr = self
        self.killed = asyncio.Event()

    def kill(self) -> None:
        self.killed.set()
        self.returncode = -9

    async def wait(self) -> int:
        await self.killed.wait()
        return -9

    async def readline(self) -> bytes:
        await self.killed.wait()
        return b""


class Owner:
    def on_progress(self, done: int, total: int) -> None:
        assert done >= 0
        assert total >= 0

    def on_report(self, measured: Measured) -> None:
        assert measured.active >= 0

    def on_death(self) -> None: ...


async def outcome(what: Awaitable[Any]) -> object:
    """What comes of it: anything but an error of ours is a bug."""
    try:
        return await what
    except RosterError as error:
        return error


async def attacked(random: random.Random, honest: list[bytes]) -> None:
    """A worker's handle over a real socket, at some time of its life; its peer writes what it likes and hangs up."""
    ours, theirs = socket.socketpair()
    child = Child()
    worker = ProcessWorker(cast("asyncio.subprocess.Process", child))
    await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
    with theirs:
        theirs.setblocking(False)
        loading = asyncio.ensure_future(outcome(worker.load(SOURCE, Owner())))
        streams = []
        stage = random.randrange(3)
        if stage > 0:
            theirs.sendall(wire.pack(EVENTS[0]))
            await outcome(worker.greeting())
        if stage > 1:
            await asyncio.sleep(0)
            theirs.sendall(wire.pack(EVENTS[2]))
            assert await loading is None
            streams = [*worker.submit(Generation(Text("x"), max_tokens=1, n=2))]
        theirs.setblocking(True)
        sending = asyncio.to_thread(_sent, theirs, written(random, honest))
        await sending
    for stream in streams:
        await outcome(_read(stream))
    await loading
    await worker.kill()
    assert worker.awaited is None or worker.awaited == worker.awaited  # no NaN


def _sent(theirs: socket.socket, octets: bytes) -> None:
    try:
        theirs.sendall(octets)
        theirs.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has been hung up on


async def _read(stream: Any) -> None:
    async for _ in stream:
        pass


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_whatever_a_worker_writes_costs_only_its_own_requests(seed: int) -> None:
    source, honest = random.Random(seed), [wire.pack(event) for event in EVENTS]
    unexpected: list[dict[str, Any]] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unexpected.append(context))
        async with asyncio.timeout(60):
            for _ in range(BATCH):
                await attacked(source, honest)

    asyncio.run(test())
    assert not unexpected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_whatever_a_server_writes_is_a_command_or_a_frame_error(seed: int) -> None:
    source, honest = random.Random(seed), [wire.pack(command) for command in COMMANDS]
    for _ in range(BATCH):
        octets, unpacker, at = written(source, honest), wire.Unpacker(), 0
        try:
            while at < len(octets):
                size = source.randint(1, 4000)
                for payload in unpacker.feed(octets[at : at + size]):
                    assert isinstance(wire.decode(wire.command_decoder, payload), wire.Command)
                at += size
        except wire.FrameError:
            pass
