"""The worker process: `python -m mlx_roster.workers.main FD`, started by `workers/process.py` and by nothing else.

The main thread owns mlx: it loads the model and then runs the engine. Another reads commands and hands them on; end of
file on the socket ends the process. (The engine has two of its own: for templates and tokenizers, and for adapters.)
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

from mlx_roster.lifeline import go_first, hold_on_to

# Service supervisors end all processes of a service at once: streams would be cut that the server lets finish. Before
# the imports below, which take a second.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if __name__ == "__main__":
    hold_on_to(int(sys.argv[2]))
    go_first()

import mlx.core as mx
import psutil

from mlx_roster.core import Counters, Delta, Device, Measured, ModelSource
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import LoadFailed, LoadOutOfMemory, RosterError
from mlx_roster.loaders import models
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.workers import wire
from mlx_roster.workers.blas import limit_threads
from mlx_roster.workers.listening import speaking

logger = logging.getLogger(__name__)

#: A worker that has something to do says every so many seconds how it is.
PULSE = 1.0

#: Steps are small and frequent; this is room for the server process to be busy elsewhere for a moment.
SEND_BUFFER = 4 * 2**20


class Link:
    """The worker's end of the socket, and the engine's output. Sends from any thread; receives on one."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sending = threading.Lock()
        self._unpacker = wire.Unpacker()

    def send(self, event: wire.Event) -> None:
        """Blocks while the server process does not read. A server that is gone ends this process."""
        try:
            with self._sending:
                self._socket.sendall(wire.pack(event))
        except OSError:
            os._exit(1)

    def receive(self) -> Iterator[wire.Command]:
        """Commands until end of file. Raises FrameError."""
        while chunk := self._socket.recv(2**16):
            for payload in self._unpacker.feed(chunk):
                yield wire.decode(wire.command_decoder, payload)

    # engine.Output

    def step(self, deltas: list[Delta]) -> None:
        self.send(wire.Step(deltas))

    def rejected(self, sequence: int, error: RosterError) -> None:
        # A message may repeat what came as JSON, in which halves of characters can be written.
        message = error.message.encode(errors="replace").decode()
        self.send(wire.Rejected(sequence, error.code, message, error.param))

    def report(self, measured: Measured) -> None:
        self.send(wire.Report(measured))

    def counted(self, counters: Counters) -> None:
        self.send(wire.Counted(counters))


def device() -> Device:
    """This machine's accelerator, as mlx sees it."""
    physical = psutil.virtual_memory().total
    if mx.metal.is_available():
        facts = mx.device_info()
        working_set = int(facts["max_recommended_working_set_size"])
        return Device(str(facts["device_name"]), "metal", int(facts["memory_size"]), working_set)
    if mx.cuda.is_available():
        facts = mx.device_info(mx.gpu)
        memory = int(facts.get("total_memory", physical))
        return Device(str(facts["device_name"]), "cuda", memory, memory)
    return Device(str(mx.device_info()["device_name"]), "cpu", physical, physical)


class Pulse:
    """Says how it is with the engine, from a thread of its own: those that work may be at one thing for long."""

    def __init__(self, link: Link, engine: Future[Engine]) -> None:
        self._link = link
        self._engine = engine
        self._heard = 0
        self._wanted = threading.Event()

    def submitted(self) -> None:
        """The engine has been given one more Submit."""
        self._heard += 1
        self._wanted.set()

    def beat(self) -> None:
        """The thread. Never returns."""
        engine = self._engine.result()
        while True:
            self._wanted.wait()
            time.sleep(PULSE)
            self._wanted.clear()
            # In this order: what comes in between is not known to be done.
            heard, since = self._heard, engine.awaited
            if since is not None:
                self._wanted.set()
            self._link.send(wire.Pulse(heard, None if since is None else max(0.0, time.monotonic() - since)))


def obey(link: Link, commands: Iterator[wire.Command], engine: Future[Engine], pulse: Pulse) -> None:
    """The reader thread. Its end is the process's end: all that is held goes back to the system at once."""
    code = 1
    try:
        for command in commands:
            match command:
                case wire.Submit(sequence, generation):
                    engine.result().submit(sequence, generation)
                    pulse.submitted()
                case wire.Cancel(sequence):
                    engine.result().cancel(sequence)
                case wire.Share(size):
                    engine.result().share(size)
                case wire.Limit(limits):
                    engine.result().limit(limits)
                case wire.Stop():
                    if engine.done() and engine.exception() is None:
                        link.counted(engine.result().counters())
                    break
                case wire.Load():
                    raise wire.FrameError("a second Load")
        code = 0
    except Exception:  # the thread boundary: nobody else would see it
        logger.exception("the server's commands cannot be followed")
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(link: Link, source: ModelSource, engine: Future[Engine]) -> None:
    """Load `source` and run its engine, on the main thread, until the reader ends the process."""
    try:
        loaded = models.load(source, lambda done, total: link.send(wire.Progress(done, total)))
        limit_threads(mx.get_active_memory())
        engine.set_result(Engine(loaded, source, link, Adapters()))
    except LoadFailed as error:
        link.send(wire.LoadError(error.message, isinstance(error, LoadOutOfMemory)))
        return
    link.send(wire.Ready(engine.result().measured(), engine.result().capabilities))
    engine.result().run()


def main() -> None:
    # How long a thread that renders a template may keep the interpreter from the one that decodes, in seconds.
    sys.setswitchinterval(0.0005)
    speaking()
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    versions = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")}
    link.send(wire.Hello(os.getpid(), device(), versions))
    commands = link.receive()
    first = next(commands, None)
    if isinstance(first, wire.Load):
        engine: Future[Engine] = Future()
        pulse = Pulse(link, engine)
        threading.Thread(target=obey, args=(link, commands, engine, pulse), daemon=True).start()
        threading.Thread(target=pulse.beat, daemon=True).start()
        serve(link, first.source, engine)


if __name__ == "__main__":
    main()
