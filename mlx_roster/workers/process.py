"""One worker process, as the server process sees it: first a spare, then the holder of one model."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import cast

from mlx_roster import errors
from mlx_roster.core import Capabilities, Device, Generation, Limits, Measured, ModelSource, Owner
from mlx_roster.errors import InternalError, LoadFailed, LoadOutOfMemory, RosterError, WorkerCrashed
from mlx_roster.workers import wire
from mlx_roster.workers.stream import SequenceStream

logger = logging.getLogger(__name__)

#: How long a worker that was told to stop may take before it is killed, in seconds.
STOP_GRACE = 5.0

#: What a worker may refuse a sequence with. Children come after their parents: a code they share means the child.
_BY_CODE = {error.code: error for error in errors.tree(errors.RequestError)}


class ProcessWorker(asyncio.Protocol):
    """A worker process and the socket to it. It satisfies `registry.ports.Worker` once loaded.

    End of file on the socket is death, whatever the process does: everything open then fails with WorkerCrashed.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.progressed = time.monotonic()
        self.measured = Measured(active=0)
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._unpacker = wire.Unpacker()
        self._streams: dict[int, SequenceStream] = {}
        self._sequences = 0
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
        self._killed = False  # by us, so that its end is no news
        self._serving = False  # loaded, and neither stopped nor lost: the owner is to hear of its death
        self._last_words: deque[str] = deque(maxlen=20)
        self._listener = loop.create_task(self._listen())

    @classmethod
    async def spawn(cls, environment: Mapping[str, str]) -> ProcessWorker:
        """Start a worker process. It says Hello when it has imported mlx: see `greeting`. Raises LoadFailed."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise LoadFailed(f"no worker process could be started: {error.strerror}") from error
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing in the working directory may stand in for a module
                "-m",
                "mlx_roster.workers.main",
                str(theirs.fileno()),
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

    async def load(self, source: ModelSource, owner: Owner) -> None:
        """See `registry.ports.Workers.load`, which this does for one process. To be called once."""
        self._name = source.name
        self._owner = owner
        try:
            await self.greeting()
            logger.debug("worker %d takes %s", self.pid, source.name)
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
        try:
            for payload in self._unpacker.feed(data):
                self._take(wire.decode(wire.event_decoder, payload))
        except wire.FrameError:
            logger.exception("the worker of %s wrote a frame that is none of ours", self._name)
            assert self._transport is not None
            self._transport.abort()
            self._process.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self.worked.set()
        crash = self._crash()
        self._fail_load(crash)
        self.cut(crash)
        if self._serving and self._owner is not None:
            self._serving = False
            self._owner.on_death()

    # Inside

    def _take(self, event: wire.Event) -> None:
        match event:
            case wire.Step(deltas):
                self.worked.set()
                self.progressed = time.monotonic()
                for delta in deltas:
                    stream = self._streams.get(delta.sequence)
                    if stream is not None:
                        stream.push(delta)
                        if delta.finish is not None:
                            del self._streams[delta.sequence]
            case wire.Rejected(sequence, code, message, param):
                self.progressed = time.monotonic()
                stream = self._streams.pop(sequence, None)
                if stream is not None:
                    stream.fail(_BY_CODE.get(code, InternalError)(message, param=param))
            case wire.Report(measured):
                self.worked.set()
                self.progressed = time.monotonic()
                self.measured = measured
                if self._serving and self._owner is not None:
                    self._owner.on_report(measured)
            case _:
                self._take_load(event)

    def _take_load(self, event: wire.Hello | wire.Progress | wire.Ready | wire.LoadError) -> None:
        """What a worker says before it serves."""
        match event:
            case wire.Hello(device=device):
                self._greeted.set_result(device)
            case wire.Progress(done, total):
                self.begun = True
                if self._owner is not None:
                    self._owner.on_progress(done, total)
            case wire.Ready(measured, capabilities):
                self.measured, self._capabilities = measured, capabilities
                if not self._ready.done():
                    self._ready.set_result(None)
            case wire.LoadError(message, out_of_memory):
                self._fail_load((LoadOutOfMemory if out_of_memory else LoadFailed)(message))

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
        return WorkerCrashed(f"the worker of {self._name} died")

    async def _listen(self) -> None:
        """Pass on what the process writes to its standard error: warnings of libraries, and its last words."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                continue  # longer than the reader's buffer, which has dropped it
            if not line:
                break
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            logger.debug("%s[%d]: %s", self._name, self.pid, text)
        code = await self._process.wait()
        if code != 0 and not self._killed:
            logger.warning("worker %d of %s ended with %d: %s", self.pid, self._name, code, "\n".join(self._last_words))
