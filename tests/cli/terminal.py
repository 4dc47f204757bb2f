"""A command at a terminal of its own, as somebody sits before it: keys in, and what is on the screen out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving import PATIENCE, interruptible

#: What only moves the cursor or changes colours; at the end, also the part of it that has come.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*([A-Za-z]|$)|\x1b$")


class Terminal:
    """`raw` is all that came, `text` the same without escape sequences."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.raw = ""
        self._master = master
        self._seen = 0
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw).replace("\r", "")

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._master, 2**16)
            except OSError:  # Linux: the other end is closed
                chunk = b""
            with self._more:
                self.raw += chunk.decode(errors="replace")
                self._more.notify_all()
            if not chunk:
                return

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def say(self, line: str) -> None:
        self.press(f"{line}\n")

    def interrupt(self, pattern: str) -> str:
        """Press Ctrl-C until it is answered: Python does not wake up for one that comes just as it begins to read."""
        for _ in range(PATIENCE):
            self.press("\x03")
            with self._more:
                if self._more.wait_for(lambda: re.search(pattern, self.text[self._seen :]), 1):
                    break
        return self.until(pattern)

    def until(self, pattern: str) -> str:
        """Wait for what comes after the last that was waited for to match."""
        with self._more:
            found = self._more.wait_for(
                lambda: re.search(pattern, self.text[self._seen :]) or not self._reader.is_alive(), PATIENCE
            )
            match = re.search(pattern, self.text[self._seen :])
            assert found is not None
            assert match is not None, f"{pattern!r} is not in:\n{self.text[self._seen :]}"
            self._seen += match.end()
            return match[0]

    def end(self) -> int:
        """Wait for the end: the exit status."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def at_terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """`mlx-roster ARGUMENTS` at a terminal of 80 columns until the block ends."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT", "NO_COLOR")}
    with sitting_at(
        [sys.executable, "-m", "mlx_roster", *arguments], inherited | {"TERM": "xterm-256color"} | environment
    ) as terminal:
        yield terminal


@contextmanager
def sitting_at(command: list[str], environment: dict[str, str], *, at: Path | None = None) -> Iterator[Terminal]:
    """`command` at a terminal of 80 columns until the block ends, in the folder `at`, or this one."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def take_terminal() -> None:
        interruptible()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=at,
        start_new_session=True,
        preexec_fn=take_terminal,
        env=environment,
    )
    os.close(slave)
    terminal = Terminal(process, master)
    try:
        yield terminal
    finally:
        process.kill()
        terminal.end()
        os.close(master)
