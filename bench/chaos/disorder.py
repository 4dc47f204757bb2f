"""What is done to a running server, one deed every now and then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine

import httpx2 as httpx
import psutil

from bench.chaos.ledger import Ledger
from bench.chaos.requests import DEADLINE, Request
from bench.chaos.rosters import MODELS, Rosters
from bench.chaos.server import Server
from bench.chaos.traffic import Traffic

BURST = 50

#: How long a pin holds before it is taken back, in seconds: with two of them, nobody else is served.
PINNED = (1.0, 4.0)

#: How long a process that is to be ended is waited for, in seconds.
PATIENCE = 5.0

#: How often an operator sees to a model whose worker was killed, out of one.
MENDED = 0.7


class Disorder:
    """The agent of disorder, for one run. Whatever it has stopped, it lets go on."""

    def __init__(
        self, server: Server, rosters: Rosters, traffic: Traffic, ledger: Ledger, http: httpx.AsyncClient, seed: int
    ) -> None:
        self._server = server
        self._rosters = rosters
        self._traffic = traffic
        self._ledger = ledger
        self._http = http
        self._draw = random.Random(seed)
        self._jobs = asyncio.TaskGroup()
        self._deeds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (5, self._kill_worker),
            (1, self._kill_spare),
            (2, self._stop_worker),
            (5, self._vary),
            (1, self._spoil),
            (1, self._hang_up),
            (2, self._load),
            (3, self._unload),
            (1, self._pin),
            (2, self._burst),
            (1, self._look),
        ]

    async def run(self, seconds: float, pace: tuple[float, float]) -> None:
        """Do something every `pace` seconds, each kind once to begin with; then wait for the end of what was begun."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        weights = [weight for weight, _ in self._deeds]
        first = [deed for _, deed in self._deeds]
        self._draw.shuffle(first)
        async with self._jobs:
            while first or loop.time() < end:
                deed = first.pop() if first else self._draw.choices(self._deeds, weights)[0][1]
                await deed()
                await asyncio.sleep(self._draw.uniform(*pace))

    def _start(self, job: Coroutine[None, None, None]) -> None:
        self._jobs.create_task(job)

    # Processes

    async def _kill_worker(self) -> None:
        model = await self._kill(spare=False)
        # Or cooldowns, which last up to five minutes, would soon be all that there is.
        if model and self._draw.random() < MENDED:
            self._start(self._mend(model))

    async def _mend(self, model: str) -> None:
        await asyncio.sleep(self._draw.uniform(1, 3))
        await self._load_now(model)

    async def _kill_spare(self) -> None:
        await self._kill(spare=True)

    async def _kill(self, *, spare: bool) -> str:
        """End one, as soon as there is one; the model that it had, if it had one."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while not (found := self._ones(spare=spare)):
            if loop.time() > end:
                return ""
            await asyncio.sleep(0.1)
        victim = self._draw.choice(found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
        # It may have been given a model at the last moment.
        model = self._server.taken().get(victim.pid, "")
        self._ledger.did("kill" if model else "kill the spare", model)
        return model

    def _ones(self, *, spare: bool) -> list[psutil.Process]:
        taken = self._server.taken()
        return [worker for worker in self._server.workers() if (worker.pid not in taken) == spare]

    async def _stop_worker(self) -> None:
        workers = self._server.workers()
        if workers:
            self._start(self._stopped(self._draw.choice(workers), self._draw.uniform(0.2, 2)))

    async def _stopped(self, worker: psutil.Process, seconds: float) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.suspend()
            self._ledger.did("stop", self._server.taken().get(worker.pid, "the spare"), f"for {seconds:.1f} s")
            try:
                await asyncio.sleep(seconds)
            finally:
                worker.resume()

    # The roster

    async def _vary(self) -> None:
        self._ledger.did("rewrite", what=self._rosters.vary(self._draw))
        await self._reload(valid=True)

    async def _spoil(self) -> None:
        self._ledger.did("spoil", what=self._rosters.spoil(self._draw))
        await self._reload(valid=False)

    async def _reload(self, *, valid: bool) -> None:
        """Have the file read, or leave that to --watch."""
        match self._draw.choice(["watch", "signal", "admin"]):
            case "signal":
                self._server.process.send_signal(signal.SIGHUP)
                self._ledger.did("SIGHUP")
            case "admin":
                self._start(self._post("reload", "/admin/reload", {200} if valid else {400}))

    async def _hang_up(self) -> None:
        """A reload that nothing was changed for."""
        self._server.process.send_signal(signal.SIGHUP)
        self._ledger.did("SIGHUP")

    # Operators

    async def _load(self) -> None:
        self._start(self._load_now(self._draw.choice(MODELS)))

    async def _load_now(self, model: str) -> None:
        self._ledger.did("load", model)
        await self._post(f"load {model}", f"/admin/models/{model}/load", {200, 404, 502, 503, 507})

    async def _unload(self) -> None:
        model = self._draw.choice(MODELS)
        flags = {"force": self._draw.random() < 0.5, "wait": self._draw.random() < 0.5}
        self._ledger.did("unload", model, f"{flags}")
        self._start(self._post(f"unload {model}", f"/admin/models/{model}/unload", {200, 202, 404}, flags))

    async def _pin(self) -> None:
        model = self._draw.choice(MODELS)
        self._ledger.did("pin", model)
        self._start(self._pinned(model, self._draw.uniform(*PINNED)))

    async def _pinned(self, model: str, seconds: float) -> None:
        await self._post(f"pin {model}", f"/admin/models/{model}/pin", {200, 404})
        await asyncio.sleep(seconds)
        self._ledger.did("pin", model, "taken back")
        await self._post(f"unpin {model}", f"/admin/models/{model}/unpin", {200, 404})

    async def _post(self, what: str, path: str, expected: set[int], flags: dict[str, bool] | None = None) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                answer = await self._http.post(path, json=flags)
                self._ledger.operated(what, answer.status_code, answer.status_code in expected, answer.text)
        except (TimeoutError, httpx.HTTPError) as error:
            self._ledger.operated(what, 0, False, f"{type(error).__name__}: {error}")

    async def _look(self) -> None:
        """Follow what happens for a while, and leave."""
        self._ledger.did("look")
        self._start(self._followed(self._draw.randint(1, 40)))

    async def _followed(self, events: int) -> None:
        what, seen = "look", 0
        try:
            async with asyncio.timeout(DEADLINE), self._http.stream("GET", "/admin/events") as answer:
                async for line in answer.aiter_lines():
                    # The whole state comes first, then what changes.
                    if line.startswith("event: ") and line != f"event: {'change' if seen else 'state'}":
                        what = f"look: event {seen + 1} is {line!r}"
                        break
                    seen += line.startswith("data: ")
                    if seen == events:
                        break
                # How much happens is not up to the watcher; but the stream must not end by itself.
                self._ledger.operated(what, answer.status_code, what == "look" and seen == events, f"{seen} events")
        except TimeoutError:
            self._ledger.operated("look", 200, True, "nothing more happened")
        except httpx.HTTPError as error:
            self._ledger.operated("look", 0, False, f"{type(error).__name__}: {error}")

    # Traffic

    async def _burst(self) -> None:
        self._ledger.did("burst")
        for _ in range(BURST):
            self._start(self._one(Request.drawn(self._draw)))

    async def _one(self, request: Request) -> None:
        await self._traffic.send(request)
