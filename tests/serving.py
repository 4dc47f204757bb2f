"""A real server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai

from mlx_roster.demo import directory

#: How long anything may take on a machine that is busy with other things, in seconds. Nothing asserts less.
PATIENCE = 60


def interruptible() -> None:
    """In a child: Ctrl-C means something to it, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Server:
    """A running `mlx-roster`, and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.logged(r"\bready at ([^\s\"]+)")

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as written:
            for line in written:
                with self._more:
                    self.lines.append(line.rstrip())
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def logged(self, pattern: str, times: int = 1) -> str:
        """Wait for the log to match so many times; the first group of the last match."""

        def matches() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._more:
            found = self._more.wait_for(
                lambda: len(matches()) >= times or not self._reader.is_alive() or self.process.poll() is not None,
                PATIENCE,
            )
            seen = matches()
            assert found, f"{pattern!r} was not logged in {PATIENCE} s:\n" + "\n".join(self.lines)
            assert len(seen) >= times, f"{pattern!r} was not logged:\n" + "\n".join(self.lines)
            match = seen[times - 1]
            return match[match.re.groups]

    def taken(self, model: str) -> int:
        """How many workers are said to have taken `model` so far. What has just happened may not be said yet."""
        return sum(bool(re.search(rf"worker \d+ takes {model}$", line)) for line in self.lines)

    def worker(self, model: str, count: int = 0) -> int:
        """The process id of the last worker that took `model`, or of that of this number, from 1 on."""
        return int(self.logged(rf"worker (\d+) takes {model}$", count or max(self.taken(model), 1)))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="no-key", max_retries=0, timeout=PATIENCE)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="no-key", max_retries=0, timeout=PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, if it still runs, and wait for the end: the exit status."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code


@contextmanager
def serving(
    *arguments: str,
    port: int | None = 0,
    environment: dict[str, str] | None = None,
    log: str | None = "text",
    ulimit: str = "",
) -> Iterator[Server]:
    """`mlx-roster ARGUMENTS` until the block ends: on a free port, or on one that `environment` names.

    `log` is what its log looks like (None leaves that to the roster), `ulimit` what the shell's command of that name
    is told first.
    """
    flags = [] if port is None else ["--port", str(port)]
    flags += [] if log is None else ["--log-format", log]
    limited = ["sh", "-c", f'ulimit {ulimit} && exec "$@"', "sh"] if ulimit else []
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT")}
    process = subprocess.Popen(
        [*limited, sys.executable, "-m", "mlx_roster", *arguments, *flags, "--verbose"],
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | (environment or {}),
    )
    try:
        server = Server(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield server
    except BaseException:
        server.stop(signal.SIGKILL)
        raise
    if server.process.returncode is None:  # the test has not ended it by itself
        assert server.stop() == 0, "\n".join(server.lines)


def demo_roster(folder: Path, *, budget: str = "75%", models: Sequence[str] = ()) -> Path:
    """A roster file in `folder` over the demo's models, with more `models` as YAML lines if need be."""
    demo = directory()
    lines = [
        f"memory: {{budget: {budget}, headroom: 0%}}",
        "default_model: atlas",
        "models:",
        f"  atlas: {{source: {demo}/models/atlas, aliases: [gpt-3.5-turbo],",
        f"    adapters: {{pirate: {demo}/adapters/pirate, french: {demo}/adapters/french}}}}",
        f"  scribe: {{source: {demo}/models/scribe, adapters: {{shout: {demo}/adapters/shout}}}}",
        *models,
    ]
    path = folder / "roster.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
