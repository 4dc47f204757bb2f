"""What a worker writes to its standard error, on its way into the server's log.

Its own records come as JSON (`speaking`) and go on as what they are, with the model and the process added. All else is
what libraries write: at DEBUG only, and without the words of Rust's panics, which may quote what a client sent.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from typing import Any

from mlx_roster.logs import JsonLines, fields

logger = logging.getLogger(__name__)

#: How many lines are kept for the case that they are the last.
KEPT = 20

_PANIC = " panicked at "
_PANIC_ENDS = "note: "


def speaking() -> None:
    """In a worker: from here on its records are written so that `Listener` understands them. The server decides which
    of them to keep."""
    mouth = logging.StreamHandler(sys.stderr)
    mouth.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[mouth], force=True)
    logging.getLogger("mlx_roster").setLevel(logging.DEBUG)


class Listener:
    """Takes what one worker process writes, line by line."""

    def __init__(self, pid: int) -> None:
        #: What the process is called.
        self.name = "spare"
        self._pid = pid
        self._last: deque[str] = deque(maxlen=KEPT)
        self._panicking = False

    @property
    def last_words(self) -> str:
        return "\n".join(self._last)

    def take(self, line: bytes) -> None:
        """Pass one line on."""
        record = _record(line)
        if record is not None:
            # Of its panics Rust ends only the first with a note; Python makes exceptions of them, which are logged.
            self._panicking = False
            self._repeat(record)
            return
        text = line.decode(errors="replace").rstrip()
        if self._panicking:
            self._panicking = not text.startswith(_PANIC_ENDS)
            return
        self._panicking = _PANIC in text
        self._last.append(text)
        about = fields(event="worker_output", model=self.name, pid=self._pid)
        logger.debug("%s[%d]: %s", self.name, self._pid, text, extra=about)

    def _repeat(self, record: dict[str, Any]) -> None:
        level = logging.getLevelNamesMapping().get(record.pop("level"), logging.WARNING)
        name, message = record.pop("logger"), record.pop("message")
        record.pop("time", None)
        exception = record.get("exception")
        if level >= logging.WARNING:
            self._last.append(message if exception is None else f"{message}\n{exception}")
        # What libraries log is nothing that we know the worth of.
        ours = name.partition(".")[0] == "mlx_roster"
        about = fields(**{**record, "model": self.name, "pid": self._pid})
        speaker = logging.getLogger(name) if ours else logger
        speaker.log(level if ours else logging.DEBUG, "%s[%d]: %s", self.name, self._pid, message, extra=about)


def _record(line: bytes) -> dict[str, Any] | None:
    """What `speaking` wrote; None for any other line."""
    if not line.startswith(b'{"time": "'):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    told = all(isinstance(record.get(name), str) for name in ("level", "logger", "message"))
    return record if told else None
