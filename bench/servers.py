"""The processes of a measurement: the two servers, the client, and mlx-lm by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from bench.models import Models
from mlx_roster.workers.blas import SWITCH, preloaded

Blas = Literal["system", "none"]

#: How long a process may take to start, to answer or to end, in seconds: models of 0.8 GB are slow without OpenBLAS.
PATIENCE = 300.0


class Broken(Exception):
    """A measurement that cannot be had, or would mean nothing."""


def environment(blas: Blas, *, preload: bool) -> dict[str, str]:
    """For a process that is to multiply with `blas`. `preload` is for those that do not see to it themselves.

    These get what our server gives its workers: whatever it does for them there, it does for its peers too.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "HOST", "PORT", SWITCH)}
    if blas == "none":
        kept[SWITCH] = "off"
    return preloaded(kept) if preload else kept


def check_blas(pid: int, blas: Blas) -> None:
    """Raises Broken where the process multiplies with something else: a comparison of the two would be none."""
    maps = Path(f"/proc/{pid}/maps")
    # numpy brings an OpenBLAS of its own, under another name and for itself alone.
    if maps.exists() and ("/libopenblas" in maps.read_text()) != (blas == "system"):
        raise Broken(f"process {pid} was to run with BLAS {blas!r}: {psutil.Process(pid).cmdline()}")


class Lines:
    """A process of ours that answers one JSON line with another. A context manager."""

    def __init__(self, *arguments: str, blas: Blas = "none") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(blas, preload=True),
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> Any:
        """Raises Broken where the process has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Broken(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.read()


@contextmanager
def bare(kind: Literal["generate", "cold"], model: Path, blas: Blas) -> Iterator[Lines]:
    """mlx-lm without a server, with everything imported."""
    with Lines("bench.bare", kind, str(model), blas=blas) as process:
        process.read()
        check_blas(process.pid, blas)
        settle(process.pid)
        yield process


class Server:
    """A running server. `wait_for` returns what a pattern's group found in what it logged."""

    #: How a request names a model or an adapter.
    by_name = True

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.host, self.port = "127.0.0.1", 0
        self._lines: list[str] = []
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()

    def wait_for(self, pattern: str) -> str:
        def found() -> re.Match[str] | None:
            return next((match for line in self._lines if (match := re.search(pattern, line))), None)

        with self._more:
            self._more.wait_for(lambda: found() or self.process.poll() is not None, PATIENCE)
            match = found()
        if match is None:
            raise Broken(f"{self.process.args!r} did not say {pattern!r}:\n{''.join(self._lines[-30:])}")
        return match[1]

    def body(self, messages: Any, max_tokens: int, model: Path, adapter: Path | None = None) -> dict[str, Any]:
        """A request, greedy and streamed."""
        body = {
            "model": model.name if self.by_name else str(model),
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if adapter is not None:
            body["adapters"] = adapter.name if self.by_name else str(adapter)
        return body

    def check_blas(self, blas: Blas) -> None:
        """See the function. To be called when a model is loaded."""
        check_blas(self.process.pid, blas)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()


class Peer(Server):
    """`mlx_lm.server`."""

    by_name = False

    #: What makes it fastest here: room for all streams at once in both phases, no log, and no cache of prompts, since
    #: none comes twice.
    FLAGS = (
        *("--decode-concurrency", "32", "--prompt-concurrency", "16"),
        *("--prompt-cache-size", "0", "--log-level", "ERROR"),
    )


class Ours(Server):
    """`mlx-roster serve`."""

    @property
    def worker(self) -> psutil.Process:
        """The one worker of a server that has loaded one model, and keeps no spare."""
        return max(psutil.Process(self.process.pid).children(), key=lambda child: child.memory_info().rss)

    def ask(self, path: str) -> Any:
        """What a GET answers."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def tokens(
        self, prompt: Sequence[int], max_tokens: int, model: Path, adapter: Path | None = None
    ) -> dict[str, Any]:
        """A request as `body` makes them, for a prompt of token ids: of exactly this length, with no template."""
        body = self.body(None, max_tokens, model, adapter)
        del body["messages"]
        return {**body, "prompt": list(prompt)}

    def check_blas(self, blas: Blas) -> None:
        for worker in psutil.Process(self.process.pid).children():
            check_blas(worker.pid, blas)


@contextmanager
def _running(kind: type[Server], arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Any]:
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
    )
    server = kind(process)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def roster_server(models: Models, blas: Blas, *, big: bool = False) -> Iterator[Ours]:
    """This project's server over all the models, none of them loaded, and a spare worker ready."""
    entries: dict[str, Any] = {path.name: {"source": str(path)} for path in models.small + (models.big if big else [])}
    entries[models.small[0].name] |= {
        "max_adapters": len(models.adapters),
        "adapters": {path.name: str(path) for path in models.adapters},
    }
    with serving(models.folder / "roster.yaml", {"models": entries}, blas) as server:
        yield server


@contextmanager
def serving(file: Path, roster: Mapping[str, Any], blas: Blas) -> Iterator[Ours]:
    """This project's server over `roster`, which is written to `file`."""
    file.write_text(json.dumps(roster))  # YAML, too
    arguments = ["mlx_roster", "serve", str(file), "--port", "0"]
    with _running(Ours, arguments, environment(blas, preload=False)) as server:
        server.port = int(server.wait_for(r"[Rr]eady at http://[^:]+:(\d+)"))
        settle(server.process.pid)
        yield server


@contextmanager
def mlx_lm_server(models: Models, blas: Blas) -> Iterator[Peer]:
    """mlx-lm's own server, with the first small model loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["mlx_lm", "server", "--model", str(models.small[0]), "--port", str(port), *Peer.FLAGS]
    with _running(Peer, arguments, environment(blas, preload=True)) as server:
        server.port = port
        _await_port(server)
        settle(server.process.pid)
        yield server


def _await_port(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            socket.create_connection((server.host, server.port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise Broken(f"{server.process.args!r} does not listen")


def settle(pid: int) -> None:
    """Wait until a process and its children have nothing to do: all loads, imports and spares are done."""
    quiet = 0
    before = _work(pid)
    deadline = time.monotonic() + PATIENCE
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        now = _work(pid)
        quiet = quiet + 1 if now - before < 0.02 else 0
        before = now


def _work(pid: int) -> float:
    """Processor seconds used so far by a process and its living children."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
