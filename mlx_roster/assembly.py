"""The composition root: the only file that sees every part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop

from mlx_roster.config import Roster, format_bytes
from mlx_roster.config.machine import budget_bytes
from mlx_roster.console import Display
from mlx_roster.core import Device
from mlx_roster.errors import ConfigError, RosterError
from mlx_roster.loaders.locate import Locator
from mlx_roster.registry import Registry
from mlx_roster.server.app import create_app
from mlx_roster.workers.spawner import Spawner

logger = logging.getLogger(__name__)

#: Peers with a short backlog refuse connections in a burst; the kernel caps this at its own limit.
BACKLOG = 4096

#: How long a response that is cut may take to say so, in seconds.
FAREWELL = 1

#: How long running responses may go on after the first SIGTERM or SIGINT, in seconds.
SHUTDOWN_GRACE = 30


class _Server(uvicorn.Server):
    """uvicorn, except for what it does at the end: the workers are still to be stopped then."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        # Not as uvicorn does it: the signal is not raised again when the server is done.
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # Out of patience, or told twice: what still runs gets a moment to tell its client so.
        if left := list(self.server_state.tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=FAREWELL)


def run(roster: Roster, display: Display) -> None:
    """Serve `roster` until SIGINT or SIGTERM. Raises ConfigError where the address cannot be bound."""
    with _listen(roster.server.host, roster.server.port) as sock:
        uvloop.run(_serve(roster, sock, display))


async def _serve(roster: Roster, sock: socket.socket, display: Display) -> None:
    async with Spawner(keep_spare=roster.memory.spare_worker) as spawner:
        device = await _device(spawner)
        budget = budget_bytes(roster.memory, device.working_set)
        locator = Locator(roster.memory.headroom)
        async with Registry(roster, spawner, locator, budget) as registry:
            server = _Server(
                uvicorn.Config(
                    create_app(registry, roster.server),
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    backlog=BACKLOG,
                    timeout_graceful_shutdown=SHUTDOWN_GRACE,
                )
            )
            logger.info("%s (%s), budget %s", device.name, device.backend, format_bytes(budget))
            async with display.watching(lambda: (registry.progress(), dict(locator.downloads))):
                display.ready(_url(sock), registry.listing())
                await server.serve(sockets=[sock])
    if locator.downloads:
        # Threads of the Hub's client, which nothing ends and the interpreter would wait for. What they have is kept.
        logging.shutdown()
        os._exit(0)


async def _device(spawner: Spawner) -> Device:
    try:
        return await spawner.device()
    except RosterError as error:
        raise ConfigError(
            "no worker process could start; its last words are above. Is mlx installed with its backend? "
            "On Linux that is mlx-roster[cpu], [cuda12] or [cuda13]"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port that is taken is the first thing one hears."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --port or PORT"
        ) from error
    sock.listen(BACKLOG)
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
