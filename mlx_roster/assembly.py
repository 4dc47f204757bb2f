"""The composition root: the only file that sees every part."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Self, cast

import uvicorn
import uvloop

from mlx_roster.config import Roster, format_bytes, format_duration
from mlx_roster.config.source import RosterSource
from mlx_roster.config.watch import Identity, changes
from mlx_roster.console import Display
from mlx_roster.core import Device
from mlx_roster.doctor.listening import refused
from mlx_roster.errors import ConfigError, RosterError, WorkerCrashed, WorkerError
from mlx_roster.loaders.locate import Locator
from mlx_roster.reading import Reading
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Reload
from mlx_roster.registry.reloading import Reloader
from mlx_roster.registry.revision import Revision
from mlx_roster.server.app import Application, create_app
from mlx_roster.server.descriptors import open_files, raise_limit, room
from mlx_roster.server.protocol import Edge, EdgeConfig
from mlx_roster.workers.diagnosis import diagnosed
from mlx_roster.workers.spawner import Spawner

logger = logging.getLogger(__name__)

#: Peers with a short backlog refuse connections in a burst; the kernel caps this at its own limit.
BACKLOG = 4096

#: Open files without which not even a loop can be run and a worker be started.
FEWEST_FILES = 64

#: How long a response that is cut may take to say so, in seconds.
FAREWELL = 1

#: How often it is looked whether the last response has ended, in seconds.
GLANCE = 0.05


class _Server(uvicorn.Server):
    """uvicorn, except for what it does at the end: the workers are still to be stopped then.

    `begun` is called once it serves, and heeds signals.
    """

    def __init__(self, app: Application, registry: Registry, begun: Callable[[], None]) -> None:
        super().__init__(
            EdgeConfig(
                app,
                lambda: registry.roster.server,
                metrics=app.metrics,
                connections=room(open_files()),
                backlog=BACKLOG,
            )
        )
        self._app = app
        self._registry = registry
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        # Not as uvicorn does it: the signal is not raised again when the server is done.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Of uvicorn's, the second one counts only where it is a Ctrl-C.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nobody new from here on; what runs gets its grace, and is cut after it, or at the second signal."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        self._app.close(self.server_state.connections)
        # Who waits for a model would wait in vain: the grace is for answers that have begun.
        self._registry.stop_admitting()
        grace = self._registry.roster.server.shutdown_grace
        if running := len(self.server_state.tasks):
            most = format_duration(grace)
            said = "one response goes" if running == 1 else f"{running} responses go"
            logger.info("shutting down: %s on, for %s at most; Ctrl-C again cuts that short", said, most)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._drain()
        # Out of patience, or told twice: what still runs gets a moment to tell its client so.
        if left := list(self.server_state.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=FAREWELL)
            for connection in list(self.server_state.connections):
                cast("Edge", connection).give_up()
            await asyncio.wait(left, timeout=FAREWELL)

    async def _drain(self) -> None:
        """Until all is said and sent, or a second signal comes."""
        # A connection that is kept is answered as long as others are: that the server is shutting down. That does not
        # keep it from doing so, however often it asks.
        begun = list(self.server_state.tasks)
        while not (self.force_exit or all(task.done() for task in begun)):  # noqa: ASYNC110 - nobody says when that is
            await asyncio.sleep(GLANCE)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(GLANCE)


class Terminal:
    """The terminal that the server was started from, whose closing is to end it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of_this_process(cls) -> Self | None:
        """None without one, and for a process that is to outlive it (nohup)."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            return None
        descriptor = next((number for number in (0, 1, 2) if os.isatty(number)), None)
        return None if descriptor is None else cls(descriptor)

    @property
    def closed(self) -> bool:
        return not os.isatty(self._descriptor)


class _Configured:
    """A registry, the locator beside it and the log, which a reload configures together."""

    def __init__(self, registry: Registry, locator: Locator, display: Display) -> None:
        self._registry = registry
        self._locator = locator
        self._display = display

    @property
    def roster(self) -> Roster:
        return self._registry.roster

    def revision(self, roster: Roster) -> Revision:
        return self._registry.revision(roster)

    def apply(self, revision: Revision, budget: int) -> None:
        roster = revision.roster
        self._locator.headroom, self._locator.offline = roster.memory.headroom, roster.offline
        self._display.configure(roster.logs)
        self._registry.apply(revision, budget)

    def reload_ended(self, reload: Reload) -> None:
        self._registry.reload_ended(reload)


def run(source: RosterSource, display: Display, *, watch: bool = False) -> None:
    """Serve what `source` says until SIGINT or SIGTERM; SIGHUP reads it again, and with `watch` a change of its file.

    Raises ConfigError where it cannot be served or the address cannot be bound, WorkerCrashed where mlx does not run.
    """
    terminal = Terminal.of_this_process()
    # The default would end a server that is still starting, or already stopping.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Before it is read: what changes from here on is a change.
    known = Identity.of(source.path) if watch and source.path is not None else None
    roster = source.read()
    display.configure(roster.logs)
    logging.captureWarnings(True)
    if (files := raise_limit()) < FEWEST_FILES:
        raise WorkerError(f"a process may have only {files} files open here\nulimit -n 8192, then start it again")
    with _listen(roster.server.host, roster.server.port) as sock:
        uvloop.run(_serve(roster, source, sock, display, known, terminal))


async def _serve(
    roster: Roster,
    source: RosterSource,
    sock: socket.socket,
    display: Display,
    watched: Identity | None,
    terminal: Terminal | None,
) -> None:
    async with Spawner(keep_spare=roster.memory.spare_worker) as spawner:
        device = await _device(spawner)
        reading = Reading(source, device)
        roster, budget = await asyncio.to_thread(reading.completed, roster)
        locator = Locator(roster.memory.headroom, offline=roster.offline)
        async with (
            Registry(roster, spawner, locator, budget) as registry,
            Reloader(_Configured(registry, locator, display), reading.again) as reloader,
            _reloading(source.path, reloader, watched, terminal),
        ):
            app = create_app(registry, reloader.reload)
            server = _Server(app, registry, lambda: display.ready(_url(sock), registry.listing()))
            logger.info("%s (%s), budget %s", device.name, device.backend, format_bytes(budget))
            if roster.auth.unoperated:
                logger.warning("auth.keys: none has the scope admin: nobody can use ps, load, reload and /metrics")
            async with display.watching(lambda: (registry.progress(), locator.progress())):
                # Before anybody can ask whether they have ended.
                registry.start_preloads()
                # A roster of thousands of models is there to stay: the collector need not go through it all the time.
                gc.collect()
                gc.freeze()
                await server.serve(sockets=[sock])


@contextlib.asynccontextmanager
async def _reloading(
    path: Path | None, reloader: Reloader, watched: Identity | None, terminal: Terminal | None
) -> AsyncIterator[None]:
    """As long as the block runs, SIGHUP reloads, and so does a change of the file at `path` from what was `watched`.

    SIGHUP because the `terminal` was closed ends the server.
    """
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[object]]()

    def start(work: Coroutine[None, None, object]) -> None:
        task: asyncio.Task[object] = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[object]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a reload failed", exc_info=error)

    def hang_up() -> None:
        if terminal is not None and terminal.closed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            start(reloader.reload("SIGHUP"))

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    if path is not None and watched is not None:
        start(_follow(path, watched, reloader))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for task in tasks:
            task.cancel()


async def _follow(path: Path, known: Identity, reloader: Reloader) -> None:
    async for _ in changes(path, known):
        await reloader.reload(f"{path} has changed")


async def _device(spawner: Spawner) -> Device:
    try:
        return await spawner.device()
    except RosterError as error:
        found = diagnosed(error.message)
        raise WorkerCrashed(f"no worker process can start: {found.what}\n{found.remedy}") from error


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port that is taken is the first thing one hears."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise ConfigError(refused(host, port, error)) from error
    sock.listen(BACKLOG)
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
