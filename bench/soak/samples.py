"""What the server and its workers hold, once a second."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

import httpx2 as httpx
import psutil

from bench.chaos.ledger import Ledger
from bench.chaos.server import Server

#: Seconds between two samples.
EVERY = 1.0

_TASKS = re.compile(r"^mlx_roster_event_loop_tasks (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `at` is a time of `time.monotonic`; bytes are resident memory."""

    at: float
    files: int
    threads: int
    #: asyncio's, as the server itself counts them; None where it did not answer.
    tasks: int | None
    processes: int
    nbytes: int
    workers_nbytes: int


class Sampler:
    """A `Companion` of a run: it looks, and changes nothing."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    async def run(self, server: Server, ledger: Ledger) -> None:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http:
            while True:
                self.samples.append(await self._look(server, http))
                await asyncio.sleep(EVERY)

    async def _look(self, server: Server, http: httpx.AsyncClient) -> Sample:
        try:
            found = _TASKS.search((await http.get("/metrics")).text)
        except httpx.HTTPError:
            found = None
        children = server.process.children(recursive=True)
        return Sample(
            at=time.monotonic(),
            files=server.process.num_fds(),
            threads=server.process.num_threads(),
            tasks=None if found is None else int(float(found[1])),
            processes=1 + len(children),
            nbytes=server.process.memory_info().rss,
            workers_nbytes=sum(map(_nbytes, children)),
        )


def _nbytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended
