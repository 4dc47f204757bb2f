"""The server under test, as a process among others: its log, its children, and what it holds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

#: How long anything that must come may take, in seconds.
PATIENCE = 60.0

#: What only a bug writes into a log.
_ALARMS = re.compile(r"Traceback|never retrieved|never awaited|ResourceWarning|\bCRITICAL\b|AssertionError")
#: What is logged at this level on purpose: a roster that is wrong.
_ERROR = re.compile(r"^\S+ \S+ ERROR (?!the roster was not reloaded|reload )")


class Stuck(Exception):
    """Something that must come has not."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process and its children hold. Bytes are resident memory, the libraries' included."""

    files: int
    threads: int
    children: int
    nbytes: int
    #: Of its children together.
    children_nbytes: int


class Server:
    """`mlx-roster serve FILE --watch`, whose log goes to a file. A context manager, which leaves nothing running."""

    def __init__(self, roster: Path, log: Path) -> None:
        self._log = log
        inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT")}
        command = [sys.executable, "-m", "mlx_roster", "serve", str(roster), "--port", "0", "--watch", "--verbose"]
        command += ["--log-format", "text"]
        with log.open("w") as file:
            self.process = psutil.Popen(command, stderr=file, stdout=subprocess.DEVNULL, env=inherited)
        self.url = ""

    def __enter__(self) -> Self:
        self.url = self._ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            for process in [*self.process.children(recursive=True), self.process]:
                process.kill()
            self.process.wait()

    def _ready(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"^ready at (\S+)/v1$", self._log.read_text(), re.MULTILINE):
                return found[1]
            time.sleep(0.05)
        raise Stuck(f"the server did not start:\n{self._log.read_text()}")

    @property
    def lines(self) -> list[str]:
        """What it has logged so far."""
        return self._log.read_text(errors="replace").splitlines()

    def alarms(self) -> list[str]:
        """Lines of the log that tell of a bug, each with those around it."""
        lines = self.lines
        return [
            "\n".join(lines[max(0, number - 3) : number + 25])
            for number, line in enumerate(lines)
            if _ALARMS.search(line) or _ERROR.search(line)
        ]

    def story(self, request: str, model: str) -> list[str]:
        """The lines that are about a request or about its model."""
        pattern = re.compile(rf"{re.escape(request)}\b|\b(model=|takes ){re.escape(model)}\b")
        return [line for line in self.lines if pattern.search(line)]

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the spare one included."""
        found = []
        for child in self.process.children():
            try:
                if "mlx_roster.workers.main" in child.cmdline():
                    found.append(child)
            except psutil.Error:
                continue  # it is gone
        return found

    def taken(self) -> dict[int, str]:
        """The models that workers have been given, by process id."""
        return {
            int(found[1]): found[2] for line in self.lines if (found := re.search(r" worker (\d+) takes (\S+)$", line))
        }

    def holdings(self) -> Holdings:
        children = self.process.children(recursive=True)
        return Holdings(
            files=self.process.num_fds(),
            threads=self.process.num_threads(),
            children=len(children),
            nbytes=self.process.memory_info().rss,
            children_nbytes=sum(child.memory_info().rss for child in children),
        )

    def stop(self) -> tuple[int, list[str]]:
        """SIGTERM: its exit code, and the processes that it has left behind."""
        children = self.process.children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        _, alive = psutil.wait_procs(children, timeout=5)
        return code, [str(process) for process in alive]
