"""The clients: each sends one request after the other, and all of them end up in the ledger."""

from __future__ import annotations

import asyncio
import random

import httpx2 as httpx

from bench.chaos.ledger import Ledger
from bench.chaos.requests import PROMPTS, Request, ask
from bench.chaos.rosters import NAMES

#: As many connections as anybody wants; one that was not used for a while may be closed by the server just when it is
#: used again, which is nobody's fault.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=1.0)


class Traffic:
    """Clients that go on until they are told to stop."""

    def __init__(self, http: httpx.AsyncClient, ledger: Ledger) -> None:
        self._http = http
        self._ledger = ledger
        self._stopped = asyncio.Event()

    async def run(self, clients: int, seed: int) -> None:
        """Returns when `stop` was called and every request has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(seed * 1000 + number)))

    def stop(self) -> None:
        self._stopped.set()

    async def send(self, request: Request) -> bool:
        """Whether it was answered."""
        outcome = await ask(self._http, request)
        self._ledger.enter(request, outcome)
        return outcome.kind == "whole"

    async def warm_up(self) -> None:
        """Everything once, one after the other, with nothing beside it: what is said now is what is always said."""
        for name in (name for name in NAMES if name != "scribe"):
            for prompt in PROMPTS:
                await self.send(Request(name, prompt, 80))

    async def _client(self, draw: random.Random) -> None:
        while not self._stopped.is_set():
            answered = await self.send(Request.drawn(draw))
            # Errors come fast: a client that asks again at once would do little else.
            pause = draw.choice([0.0, 0.05, draw.uniform(0, 1.5)]) if answered else draw.uniform(0.3, 1.5)
            try:
                await asyncio.wait_for(self._stopped.wait(), pause)
            except TimeoutError:
                continue
