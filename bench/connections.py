"""What many connections, and a model that comes and goes, cost a running server. Prints Markdown.

python -m bench.connections [--connections 512] [--cycles 1000] [--loads 100] [--model FOLDER]

All the while `bench.prober` asks for /health, /v1/models and /metrics, twice a second each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.models import SMALL, VOCABULARY, write_model
from bench.prober import probing, spread
from bench.servers import Broken, Ours, serving, settle

PROBED = ("/health", "/v1/models", "/metrics")
#: Between two questions to one of them, in seconds.
EVERY = 0.5
#: How long anything may take, in seconds.
PATIENCE = 300.0
#: Clients that come and go at a time.
TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Held:
    """What the server's processes hold."""

    server_mib: float
    workers_mib: float
    processes: int
    files: int
    available_mib: float

    @classmethod
    def by(cls, server: Ours) -> Held:
        """As soon as they have nothing to do."""
        settle(server.process.pid)
        process = psutil.Process(server.process.pid)
        children = process.children(recursive=True)
        return cls(
            process.memory_info().rss / 2**20,
            sum(child.memory_info().rss for child in children) / 2**20,
            len(children) + 1,
            process.num_fds(),
            psutil.virtual_memory().available / 2**20,
        )


def request(model: str, path: str = "/v1/completions", **more: object) -> bytes:
    body = json.dumps({"model": model, "prompt": "so", "max_tokens": 2, **more}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def burst(server: Ours, model: str, count: int) -> list[float]:
    """Seconds to each answer's end, of so many clients that ask at once; fewer where some were lost."""
    all_there = asyncio.Barrier(count)

    async def one(number: int) -> float | None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            await all_there.wait()
            begun = time.perf_counter()
            writer.write(request(model, stream=bool(number % 2)))
            answer = await reader.read()
            took = time.perf_counter() - begun
        except OSError:
            return None
        finally:
            writer.close()
        whole = b"data: [DONE]" if number % 2 else b'"finish_reason"'
        return took if answer.startswith(b"HTTP/1.1 200") and whole in answer else None

    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(one(number) for number in range(count)))
    return [took for took in found if took is not None]


async def come_and_go(server: Ours, model: str, count: int) -> None:
    """Connections that end before a request, in its headers, in its body, behind it, and in the answer."""
    draw, together = random.Random(7), asyncio.Semaphore(TOGETHER)
    sent = request(model, stream=True, max_tokens=200)

    async def one(step: int) -> None:
        async with together:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            ends = [0, draw.randrange(1, 60), draw.randrange(100, len(sent)), len(sent), len(sent)]
            writer.write(sent[: ends[step % 5]])
            if step % 5 == 4:
                await reader.read(draw.randrange(1, 2000))
            writer.transport.abort() if draw.random() < 0.5 else writer.close()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(one(step) for step in range(count)))


def post(server: Ours, path: str, body: bytes = b"") -> None:
    headers = {"content-type": "application/json"} if body else {}
    url = f"http://{server.host}:{server.port}{path}"
    asked = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        answer.read()


def load_and_unload(server: Ours, model: str, count: int) -> list[float]:
    """Seconds of each cycle: loaded, asked once, and gone."""
    took = []
    body = json.dumps({"model": model, "prompt": "so", "max_tokens": 2}).encode()
    for _ in range(count):
        begun = time.perf_counter()
        post(server, f"/admin/models/{model}/load")
        post(server, "/v1/completions", body)
        post(server, f"/admin/models/{model}/unload?wait=true")
        took.append(time.perf_counter() - begun)
    return took


def idle(server: Ours) -> None:
    """Wait until nothing runs and nothing waits."""
    deadline = time.monotonic() + PATIENCE
    while any(model["roster"]["in_flight"] or model["roster"]["queued"] for model in server.ask("/v1/models")["data"]):
        if time.monotonic() > deadline:
            raise Broken("what clients have left goes on")
        time.sleep(0.1)


def milliseconds(took: Sequence[float]) -> str:
    """p50, p99 and max, as cells."""
    return " | ".join(f"{1000 * value:,.0f}" for value in spread(took))


def held_rows(before: Held, after: Held) -> Iterator[str]:
    yield "| | before | after |"
    yield "|---|---|---|"
    yield f"| server, MiB | {before.server_mib:,.0f} | {after.server_mib:,.0f} |"
    yield f"| its workers, MiB | {before.workers_mib:,.0f} | {after.workers_mib:,.0f} |"
    yield f"| processes | {before.processes} | {after.processes} |"
    yield f"| open files of the server | {before.files} | {after.files} |"
    yield f"| available on the machine, MiB | {before.available_mib:,.0f} | {after.available_mib:,.0f} |"


def measure(server: Ours, model: str, connections: int, cycles: int, loads: int) -> Iterator[str]:
    url = f"http://{server.host}:{server.port}"
    with probing(url, server.process.pid, PROBED, EVERY / len(PROBED)) as found:
        load_and_unload(server, model, 1)
        post(server, f"/admin/models/{model}/load")
        took = asyncio.run(burst(server, model, connections))
        lost = connections - len(took)
        yield f"{connections} simultaneous connections, one request each, half of them streamed: {lost} lost.\n"
        yield "| | p50 | p99 | max |"
        yield "|---|---|---|---|"
        yield f"| time to the answer's end, ms | {milliseconds(took)} |\n"
        idle(server)
        before = Held.by(server)
        asyncio.run(come_and_go(server, model, cycles))
        idle(server)
        yield f"{cycles:,} connections that end before, in or behind their request:\n"
        yield from held_rows(before, Held.by(server))
        post(server, f"/admin/models/{model}/unload?wait=true")
        load_and_unload(server, model, 3)
        before = Held.by(server)
        took = load_and_unload(server, model, loads)
        yield f"\n{loads} times loaded, asked and unloaded:\n"
        yield from held_rows(before, Held.by(server))
        yield "\n| | p50 | p99 | max |"
        yield "|---|---|---|---|"
        yield f"| one cycle, ms | {milliseconds(took)} |\n"
        yield f"Through all of it, each asked every {1000 * EVERY:.0f} ms:\n"
        yield "| | p50 ms | p99 ms | max ms | asked |"
        yield "|---|---|---|---|---|"
        for path, answers in found().items():
            if wrong := [answer.status for answer in answers if answer.status != 200]:
                raise Broken(f"{path} answered {wrong[0]}")
            yield f"| `{path}` | {milliseconds([answer.took for answer in answers])} | {len(answers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--loads", type=int, default=100)
    parser.add_argument("--model", type=Path, help="a folder; a random model of 4.5 million parameters if left out")
    asked = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * asked.connections + 100)), hard))
    with tempfile.TemporaryDirectory(prefix="connections-") as scratch:
        folder = asked.model
        if folder is None:
            folder = Path(scratch) / "one"
            write_model(folder, 0, SMALL, VOCABULARY)
        roster = {"models": {"one": {"source": str(folder)}}}
        with serving(Path(scratch) / "roster.yaml", roster, "none") as server:
            for line in measure(server, "one", asked.connections, asked.cycles, asked.loads):
                print(line)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
