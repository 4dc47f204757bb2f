"""What a terminal may be sent: text of other hands, made harmless, and the few styles of ours."""

from __future__ import annotations

import os
import re
from typing import TextIO

#: What a terminal acts on instead of showing it: C0 but for tabs and newlines, DEL, and C1.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: Halves of characters, which JSON can carry and no encoding can.
_HALVES = re.compile("[\ud800-\udfff]")

_STYLES = {"dim": "\x1b[2m", "red": "\x1b[31m", "bold": "\x1b[1m"}
_PLAIN = "\x1b[0m"


def clean(text: str) -> str:
    """`text` without what a terminal would obey: escape sequences lose their first character, and are seen."""
    return whole(_CONTROLS.sub("", text))


def whole(text: str) -> str:
    """`text` without halves of characters, so that it can be written anywhere."""
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


class Screen:
    """Writes to `file`: clean and styled to a terminal, as it is to anything else."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.is_terminal = file.isatty()
        self._styled = self.is_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        #: The last that was written ended its line.
        self.at_line_start = True

    def write(self, text: str, style: str = "") -> None:
        """At once, as far as it goes. `style` is dim, red, bold or none."""
        if not text:
            return
        shown = clean(text) if self.is_terminal else whole(text)
        self.at_line_start = shown.endswith("\n") if shown else self.at_line_start
        self._file.write(f"{_STYLES[style]}{shown}{_PLAIN}" if style and self._styled else shown)
        self._file.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """A line of its own."""
        self.write("" if self.at_line_start else "\n")
        self.write(text, style)
        self.write("\n")
