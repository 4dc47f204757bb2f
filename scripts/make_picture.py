"""The picture of the README: `python scripts/make_picture.py` writes docs/images/demo.svg.

It starts the demo in a terminal of its own, asks it what the picture shows, and prints what came of that. All of it is
real; left out are only the lines of the log, which say what machine this is.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
ASKED = (
    ("chat", "atlas:pirate", "--temperature", "0", "--prompt", "What is the capital of France?"),
    ("chat", "atlas:french", "--temperature", "0", "--prompt", "What is the capital of France?"),
    ("chat", "scribe:shout", "--temperature", "0", "--prompt", "What is the opposite of hot?"),
    ("ps",),
)

WIDTH, HEIGHT = 104, 60
PATIENCE = 60.0
COMMAND = str(Path(sys.executable).parent / "mlx-roster")

# Of the fonts that readers have: the exporter's own format fetches one from elsewhere.
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", FONTS
)
DARK = [(60, 65, 80), (240, 113, 120), (142, 210, 140), (240, 200, 120), (120, 170, 250), (200, 150, 240)]
LIGHT = [(110, 116, 135), (250, 140, 145), (165, 225, 160), (250, 215, 150), (150, 190, 255), (215, 175, 250)]
THEME = TerminalTheme(
    (24, 27, 36),
    (220, 224, 232),
    [*DARK, (110, 205, 220), (220, 224, 232)],
    [*LIGHT, (140, 220, 235), (240, 242, 248)],
)


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    port = free_port()
    with Terminal("demo", "--port", str(port)) as server:
        lines = server.until(" mlx-roster chat").splitlines()
        first = next(number for number, line in enumerate(lines) if "atlas" in line)
        show(console, ("demo",), "\n".join(lines[first:]), port)
        console.print("# in another terminal", style="bright_black")
        for words in ASKED:
            with Terminal(*words, address=f"http://127.0.0.1:{port}") as asking:
                show(console, words, asking.whole(), port)
        server.process.send_signal(signal.SIGINT)
        server.whole()
    svg = console.export_svg(title="mlx-roster", theme=THEME, code_format=FORMAT, unique_id="demo")
    PICTURE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def show(console: Console, words: tuple[str, ...], said: str, port: int) -> None:
    """A command, and what it printed."""
    line = " ".join(f'"{word}"' if " " in word else word for word in words)
    console.print(Text.assemble(("$ ", "bright_black"), ("mlx-roster ", "bold"), (line, "bold")))
    said = said.replace(f" --url http://127.0.0.1:{port}", "").replace(f":{port}/", ":8080/")
    printed = Text.from_ansi(said.replace("\r", "").strip("\n"))
    for row in printed.split("\n"):
        row.rstrip()
        console.print(row, no_wrap=True, overflow="ellipsis")
    console.print()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


class Terminal:
    """`mlx-roster`, in a terminal of its own. It is read all the time: who writes to one that is not stands still."""

    def __init__(self, *words: str, address: str = "") -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        kept = {
            name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "HOST", "PORT")
        }
        environment = kept | {"TERM": "xterm-256color"} | ({"MLX_ROSTER_URL": address} if address else {})
        self.process = subprocess.Popen(
            [COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self._printed = b""
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._ours, 65536)
            except OSError:  # Linux's way to say that nobody has the other end any more
                chunk = b""
            with self._more:
                self._printed += chunk
                self._more.notify_all()
            if not chunk:
                return

    def until(self, words: str) -> str:
        """What it has printed, once there is a line with these words."""
        with self._more:
            if not self._more.wait_for(lambda: re.search(rf"{words}.*\n", self._text()), PATIENCE):
                raise SystemExit(f"no {words!r} within {PATIENCE:.0f} s: {self._text()}")
            return self._text()

    def whole(self) -> str:
        """What it has printed when it has ended, well."""
        code = self.process.wait(PATIENCE)
        self._reader.join()
        if code:
            raise SystemExit(f"exit status {code}: {self._text()}")
        return self._text()

    def _text(self) -> str:
        return self._printed.decode(errors="replace")


if __name__ == "__main__":
    main()
