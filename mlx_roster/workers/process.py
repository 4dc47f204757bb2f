"""One worker process, as the server process sees it: first a spare, then the holder of one model."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec

from mlx_roster import errors
from mlx_roster.core import Capabilities, Counters, Delta, Device, Generation, Limits, Measured, ModelSource, Owner
from mlx_roster.errors import InternalError, LoadFailed, LoadOutOfMemory, RosterError, WorkerCrashed
from mlx_roster.workers import wire
from mlx_roster.workers.descriptors import check_room
from mlx_roster.workers.diagnosis import last_line
from mlx_roster.workers.listening import Listener
from mlx_roster.workers.stream import SequenceStream

logger = logging.getLogger(__name__)

#: How long a worker that was told to stop may take before it is killed, in seconds.
STOP_GRACE = 5.0

#: What a worker process runs. Nothing in the working directory may stand in for a module.
PROGRAM = (sys.executable, "-P", "-m", "mlx_roster.workers.main")

#: What a worker may refuse a sequence with. Children come after their parents: a code they share means the child.
_BY_CODE = {error.code: error for error in errors.tree(errors.RequestError)}


class ProcessWorker(asyncio.Protocol):
    """A worker process and the socket to it. It satisfies `registry.ports.Worker` once loaded.

    End of file on the socket is death, whatever the process does: everything open then fails with WorkerCrashed.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.progressed = time.monotonic()
        #: See `registry.ports.Worker`: from its latest Pulse, or since the first Submit after it had nothing to do.
        self.awaited: float | None = None
        self.measured = Measured(active=0)
        self.counters = Counters()
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._unpacker = wire.Unpacker()
        self._streams: dict[int, SequenceStream] = {}
        self._sequences = 0
        self._submits = 0
        self._name = "spare"
        self._capabilities: Capabilities | None = None
        self._greeted: asyncio.Future[Device] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        #: It has begun to read its model.
        self.begun = False
        #: Set by the first thing that the loaded model says, and by the end.
        self.worked = asyncio.Event()
        self._lost = asyncio.Event()
        self._owner: Owner | None = None
        self._said_hello = False
        self._asked = False  # to load
        self._garbled = False  # it has said what nobody understands, and is not listened to any more
        self._killed = False  # by us, so that its end is no news
        self._serving = False  # loaded, and neither stopped nor lost: the owner is to hear of its death
        self._ears = Listener(process.pid)
        self._listener = loop.create_task(self._listen())

    @classmethod
    async def spawn(cls, environment: Mapping[str, str], program: Sequence[str] = PROGRAM) -> ProcessWorker:
        """Start a worker process. It says Hello when it has imported mlx: see `greeting`. Raises LoadFailed.

        `program` is the command that speaks our frames; it is given the descriptor of its end of the socket, and the
        process id of this one.
        """
        try:
            check_room()
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise LoadFailed(f"no worker process could be started: {error.strerror}") from error
        try:
            process = await asyncio.create_subprocess_exec(
                *program,
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                # Ctrl-C reaches every process of the terminal's group: what becomes of a worker, the server decides.
                start_new_session=True,
            )
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise LoadFailed(f"no worker process could be started: {error.strerror}") from error
            raise
        finally:
            theirs.close()
        worker = cls(process)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Nothing has been heard of its end."""
        return not self._lost.is_set()

    @property
    def capabilities(self) -> Capabilities:
        assert self._capabilities is not None, "asked before the model was loaded"
        return self._capabilities

    async def greeting(self) -> Device:
        """Wait until the worker has imported mlx. Raises WorkerCrashed."""
        return await asyncio.shield(self._greeted)

    async def last_words(self) -> str:
        """The end of what it wrote to its standard error, once it has ended."""
        await asyncio.wait([self._listener], timeout=1.0)
        return self._ears.last_words

    async def load(self, source: ModelSource, owner: Owner) -> None:
        """See `registry.ports.Workers.load`, which this does for one process. To be called once."""
        self._name = self._ears.name = source.name
        self._owner = owner
        try:
            await self.greeting()
            logger.debug("worker %d takes %s", self.pid, source.name)
            self._asked = True
            self._send(wire.Load(source))
            await self._ready
            if self._lost.is_set():
                raise self._crash()
            self.progressed = time.monotonic()
        except BaseException:
            # Also a cancelled load: killing the process is what ends it at once and gives its memory back.
            await self.kill()
            raise
        self._serving = True

    def submit(self, generation: Generation) -> list[SequenceStream]:
        first = self._sequences + 1
        self._sequences += generation.n
        streams = [self._open(sequence) for sequence in range(first, first + generation.n)]
        if self._lost.is_set():
            self.cut(self._crash())
        else:
            self._submits += 1
            if self.awaited is None:
                self.awaited = time.monotonic()
            self._send(wire.Submit(first, generation))
        return streams

    def _open(self, sequence: int) -> SequenceStream:
        stream = self._streams[sequence] = SequenceStream(lambda: self._cancel(sequence))
        return stream

    def share(self, size: int) -> None:
        self._send(wire.Share(size))

    def limit(self, limits: Limits) -> None:
        self._send(wire.Limit(limits))

    def cut(self, error: RosterError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)

    async def stop(self) -> None:
        self._serving = False
        self._send(wire.Stop())
        try:
            async with asyncio.timeout(STOP_GRACE):
                await self._process.wait()
        except TimeoutError:
            logger.warning("the worker of %s did not stop in %.0f s: killed", self._name, STOP_GRACE)
        await self.kill()

    async def kill(self) -> None:
        """End the process now and wait until it is gone."""
        self._serving, self._killed = False, True
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        # A process that the worker started may still have its standard error: last words are not worth a longer wait.
        await asyncio.wait([self._listener], timeout=1.0)
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        if self._garbled:
            return
        try:
            for payload in self._unpacker.feed(data):
                self._take(wire.decode(wire.event_decoder, payload))
        except wire.FrameError as error:
            said = "the worker of %s wrote what is none of ours, and is ended: %s"
            logger.error(said, self._name, error)  # noqa: TRY400 - where it was noticed says nothing of where it is from
            self._garbled = True
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self.worked.set()
        if self._process.returncode is None and not self._killed:
            # What it holds counts as free from here on, and it may have done no more than to hang up. (Killing polls
            # first: of one that has just been killed, that would take its status from asyncio, which warns of it.)
            self._process.kill()
        crash = self._crash()
        self._fail_load(crash)
        self.cut(crash)
        if self._serving and self._owner is not None:
            self._serving = False
            self._owner.on_death()

    # Inside

    def _take(self, event: wire.Event) -> None:
        """Raises FrameError for what no worker of ours says, or not now."""
        if isinstance(event, wire.Hello | wire.Progress | wire.Ready | wire.LoadError):
            self._take_load(event)
            return
        if self._capabilities is None:
            raise wire.FrameError(f"a {type(event).__name__} of one that is not ready")
        self._take_work(event)

    def _take_work(self, event: wire.Step | wire.Rejected | wire.Report | wire.Counted | wire.Pulse) -> None:
        match event:
            case wire.Step(deltas):
                self._step(deltas)
            case wire.Rejected(sequence, code, message, param):
                self.progressed = time.monotonic()
                stream = self._streams.pop(sequence, None)
                if stream is not None:
                    stream.fail(_BY_CODE.get(code, InternalError)(message, param=param))
            case wire.Report(measured) if _possible(measured):
                self.worked.set()
                self.progressed = time.monotonic()
                self.measured = measured
                if self._serving and self._owner is not None:
                    self._owner.on_report(measured)
            case wire.Counted(counters) if _possible(counters):
                # Two threads of a worker count: the one that looked first may be the last to say it.
                self.counters = counters.after(self.counters)
            case wire.Pulse(heard, stuck) if stuck is None or 0 <= stuck < math.inf:
                self._felt(heard, stuck)
            case _:
                raise wire.FrameError(f"a {type(event).__name__} that cannot be")

    def _step(self, deltas: list[Delta]) -> None:
        self.worked.set()
        self.progressed = time.monotonic()
        for delta in deltas:
            stream = self._streams.get(delta.sequence)
            if stream is not None:
                stream.push(delta)
                if delta.finish is not None:
                    del self._streams[delta.sequence]

    def _felt(self, heard: int, stuck: float | None) -> None:
        now = time.monotonic()
        if stuck is not None:
            self.awaited = now - stuck
        elif heard == self._submits:
            self.awaited = None
        elif self.awaited is not None:
            self.awaited = now  # it is done with what it knows of; more is on its way to it

    def _take_load(self, event: wire.Hello | wire.Progress | wire.Ready | wire.LoadError) -> None:
        """What a worker says before it serves."""
        match event:
            case wire.Hello(device=device) if not self._greeted.done():
                self._said_hello = True
                self._greeted.set_result(device)
            case wire.Progress(done, total) if self._loading and done >= 0 and total >= 0:
                self.begun = True
                if self._owner is not None:
                    self._owner.on_progress(done, total)
            case wire.Ready(measured, capabilities) if self._loading and _possible(measured):
                self.measured, self._capabilities = measured, capabilities
                self._ready.set_result(None)
            case wire.LoadError(message, out_of_memory) if self._loading:
                self._fail_load((LoadOutOfMemory if out_of_memory else LoadFailed)(message))
            case _:
                raise wire.FrameError(f"a {type(event).__name__} at the wrong time, or that cannot be")

    @property
    def _loading(self) -> bool:
        return self._asked and not self._ready.done()

    def _fail_load(self, error: RosterError) -> None:
        """Tell whoever awaits the load. Nobody may: then it is nobody's news, and asyncio must not report it."""
        for future in (self._greeted, self._ready):
            if not future.done():
                future.set_exception(error)
                future.exception()

    def _cancel(self, sequence: int) -> None:
        if self._streams.pop(sequence, None) is not None:
            self._send(wire.Cancel(sequence))

    def _send(self, command: wire.Command) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.pack(command))

    def _crash(self) -> RosterError:
        how = "wrote what cannot be understood, and was ended" if self._garbled else "died"
        return WorkerCrashed(f"the worker of {self._name} {how}")

    async def _listen(self) -> None:
        """Pass on what the process writes to its standard error, and its last words."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                continue  # longer than the reader's buffer, which has dropped it
            if not line:
                break
            self._ears.take(line)
        code = await self._process.wait()
        if code != 0 and not self._killed:
            # Of one that could not even start, the error without its traceback: whoever starts a server reads that.
            words = self._ears.last_words if self._said_hello else last_line(self._ears.last_words)
            logger.warning("worker %d of %s ended with %d: %s", self.pid, self._name, code, words)


def _possible(said: Measured | Counters) -> bool:
    """Nobody's memory is less than nothing: it would be given to others."""
    return all(figure >= 0 for figure in msgspec.structs.astuple(said))
