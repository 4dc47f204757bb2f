"""A run from the first process to the last: warm-up, chaos, quiet, and what is left then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2 as httpx

from bench.chaos.disorder import Disorder
from bench.chaos.ledger import Ledger
from bench.chaos.rosters import Rosters
from bench.chaos.server import PATIENCE, Holdings, Server, Stuck
from bench.chaos.traffic import LIMITS, Traffic
from bench.prober import Answer, probing, spread
from bench.servers import settle

#: What the server process may hold more at the end than after the warm-up: files, asyncio's pool of threads, and
#: bytes, for what it remembers of the models it has had, new code paths and what the allocator keeps.
MORE_FILES = 2
MORE_THREADS = min(32, (os.cpu_count() or 1) + 4)
MORE_BYTES = 32 * 2**20

#: What somebody asks for all the time, and how often, in seconds.
WATCHED = ("/health", "/v1/models", "/metrics", "/admin/status")
PULSE = 0.25

_GONE = ("unloaded", "cooldown")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how much. `pace`: seconds between two deeds, at least and at most."""

    seconds: float = 300.0
    seed: int = 1
    clients: int = 12
    pace: tuple[float, float] = (0.5, 2.5)


@dataclass(frozen=True, slots=True)
class Report:
    """What has come of it. All is well where nothing is lost and nothing is wrong."""

    figures: dict[str, Any]
    #: Requests without a whole answer, a documented error or a client that left; each with its story.
    lost: list[str]
    #: What was found afterwards.
    wrong: list[str]


class Companion(Protocol):
    """Something else that goes on from before the warm-up until all is at rest again."""

    async def run(self, server: Server, ledger: Ledger) -> None:
        """Until it is cancelled."""


def run(
    plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None, beside: Sequence[Companion] = ()
) -> Report:
    """`folder` takes the models, the roster and the server's log."""
    rosters = Rosters(folder)
    with Server(rosters.path, folder / "server.log") as server:
        return asyncio.run(_Run(plan, rosters, server, say, beside).through())


class _Run:
    def __init__(
        self,
        plan: Plan,
        rosters: Rosters,
        server: Server,
        say: Callable[[str], None],
        beside: Sequence[Companion],
    ) -> None:
        self._plan = plan
        self._beside = beside
        self._rosters = rosters
        self._server = server
        self._ledger = Ledger(server, rosters, say)
        self._wrong: list[str] = []

    async def through(self) -> Report:
        with self._accompanied():
            async with self._client() as http:
                await Traffic(http, self._ledger).warm_up()
            before = await self._at_rest()
            began = time.monotonic()
            async with self._client() as http:
                with probing(self._server.url, self._server.process.pid, WATCHED, PULSE) as watched:
                    await self._chaos(http)
                    answers = watched()
                took = time.monotonic() - began
                metrics = (await http.get("/metrics")).text
            after = await self._at_rest()
            await self._compare(before, after)
        for answer in itertools.chain(*answers.values()):
            self._expect(answer.status == 200, f"{answer.path}: {answer.status}")
        code, left = await asyncio.to_thread(self._server.stop)
        self._expect(code == 0, f"SIGTERM ended it with {code}")
        self._expect(not left, f"processes are left: {left}")
        self._wrong += [f"in the log:\n{alarm}" for alarm in self._server.alarms()]
        figures = {
            "plan": asdict(self._plan),
            "seconds": round(took, 1),
            "bytes of the models": self._rosters.sizes,
            "budget": self._rosters.budget,
            **self._ledger.figures(),
            **_counted(metrics),
            "watched": {path: _watched(each) for path, each in answers.items()},
            "before": asdict(before),
            "after": asdict(after),
        }
        return Report(figures, self._ledger.losses, self._wrong)

    @contextlib.contextmanager
    def _accompanied(self) -> Iterator[None]:
        tasks = [asyncio.create_task(one.run(self._server, self._ledger)) for one in self._beside]
        try:
            yield
        finally:
            for task in tasks:
                # One that has failed says so; a companion never ends by itself.
                if task.done() and not task.cancelled():
                    task.result()
                task.cancel()

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._server.url, limits=LIMITS, timeout=None, trust_env=False)

    def _expect(self, well: bool, otherwise: str) -> None:
        if not well:
            self._wrong.append(otherwise)

    async def _chaos(self, http: httpx.AsyncClient) -> None:
        traffic = Traffic(http, self._ledger)
        disorder = Disorder(self._server, self._rosters, traffic, self._ledger, http, self._plan.seed)
        clients = asyncio.create_task(traffic.run(self._plan.clients, self._plan.seed))
        await disorder.run(self._plan.seconds, self._plan.pace)
        traffic.stop()
        await clients
        self._rosters.restore()
        answer = await http.post("/admin/reload")
        self._expect(answer.status_code == 200, f"the last reload: {answer.status_code} {answer.text}")

    async def _at_rest(self) -> Holdings:
        """Unload everything, wait until nothing is going on, and look."""
        async with self._client() as http:
            status = (await http.get("/admin/status")).json()
            for model in status["models"]:
                await http.post(f"/admin/models/{model['id']}/unpin")
                await http.post(f"/admin/models/{model['id']}/unload", json={"wait": True})
            await self._until(lambda: self._idle(http), "the server did not come to rest")
        # The spare may still be importing, and what has just ended is being tidied up.
        await asyncio.to_thread(settle, self._server.process.pid)
        return self._server.holdings()

    async def _idle(self, http: httpx.AsyncClient) -> str:
        """What is not at rest yet, if anything is."""
        status = (await http.get("/admin/status")).json()
        busy = [
            (model["id"], model["state"], model["leases"], model["queued"])
            for model in status["models"]
            if model["state"] not in _GONE or model["leases"] or model["queued"] or model["pinned"]
        ]
        memory = status["memory"]
        if busy or status["queued"] or memory["held"] or memory["committed"]:
            return f"{busy}, queued {status['queued']}, memory {memory}"
        residents = (await http.get("/health")).json()["residents"]
        workers = [worker.pid for worker in self._server.workers()]
        return "" if not any(residents.values()) and len(workers) == 1 else f"{residents}, workers {workers}"

    async def _until(self, check: Callable[[], Any], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while busy := await check():
            if time.monotonic() > deadline:
                raise Stuck(f"{otherwise}: {busy}")
            await asyncio.sleep(0.1)

    async def _compare(self, before: Holdings, after: Holdings) -> None:
        self._expect(after.files <= before.files + MORE_FILES, f"open files: {before.files}, then {after.files}")
        self._expect(after.threads <= before.threads + MORE_THREADS, f"threads: {before.threads}, then {after.threads}")
        self._expect(after.children == 1, f"{after.children} children are left, not only the spare")
        self._expect(after.nbytes <= before.nbytes + MORE_BYTES, f"bytes: {before.nbytes}, then {after.nbytes}")
        async with self._client() as http:
            answer = await http.get("/health")
            self._expect(answer.json()["status"] == "ok", f"/health: {answer.text}")


def _watched(answers: Sequence[Answer]) -> dict[str, Any]:
    """How long they took, and how long of that was a wait for a processor: median, 99th percentile, maximum, in ms."""
    return {
        "asked": len(answers),
        "took": _milliseconds([answer.took for answer in answers]),
        "server_waited": _milliseconds([answer.server_waited for answer in answers]),
        "asker_waited": _milliseconds([answer.asker_waited for answer in answers]),
        "rest": _milliseconds([answer.rest for answer in answers]),
    }


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [round(1000 * value, 1) for value in spread(seconds)]


def _counted(metrics: str) -> dict[str, dict[str, int]]:
    """Loads by result, evictions by reason and reloads by result, of all models together."""
    found: dict[str, dict[str, int]] = {"loads": {}, "evictions": {}, "config_reloads": {}}
    for line in metrics.splitlines():
        name, _, rest = line.partition("{")
        kind = name.removeprefix("mlx_roster_").removesuffix("_total")
        if kind in found and name.endswith("_total"):
            labels, _, value = rest.rpartition("} ")
            label = labels.rpartition('="')[2].rstrip('"')
            found[kind][label] = found[kind].get(label, 0) + int(float(value))
    return found
