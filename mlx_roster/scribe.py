"""Writing on a thread of its own: whoever has something to say never waits for whoever reads it.

A terminal that was stopped with Ctrl-S, a pager, or a pipe into a process that hangs takes nothing any more after a few
kilobytes; a server that waited for it would stand still with it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

#: What may wait to be written. A line or so each.
WAITING = 10_000


class Scribe:
    """Does what it is told to, in order, on one thread. `put` may be called on any, and never waits."""

    def __init__(self, waiting: int = WAITING) -> None:
        # The one queue that may be put to while it is being put to: in between, the garbage collector may end what has
        # something to say of that.
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting = waiting
        # Nothing can be done about one that never comes back from a write.
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._jobs.empty()

    def put(self, job: Callable[[], None]) -> bool:
        """Have `job` done. False: too much waits already, and it will not be."""
        if self._jobs.qsize() >= self._waiting:
            return False
        self._jobs.put(job)
        return True

    def close(self, timeout: float) -> bool:
        """Do what waits, for `timeout` seconds at most. Whether all of it is done. Nothing may be put any more."""
        self._jobs.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            # A terminal that is gone, say. Of what cannot be written nothing can be written, and the next may be.
            with contextlib.suppress(Exception):
                job()


class ScribedLog(logging.Handler):
    """Has `target` write the records. Those for which there is no room are dropped, and counted where they would be."""

    def __init__(self, scribe: Scribe, target: logging.Handler) -> None:
        super().__init__()
        #: May be replaced: records go to the one that there was when they were made.
        self.target = target
        self._scribe = scribe
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        # What it speaks of may be another by the time that it is written; and others have the record as it is.
        said = copy.copy(record)
        try:
            said.msg = record.getMessage()
        except Exception:  # noqa: BLE001  whoever calls a logger must not fail for it, as with all that logging has
            said.msg = f"{record.msg} {record.args!r}"
        said.args = None
        if self._scribe.put(partial(_write, said, self.target, self._dropped)):
            self._dropped = 0
        else:
            self._dropped += 1


def _write(record: logging.LogRecord, target: logging.Handler, dropped: int) -> None:
    if dropped:
        said = f"{dropped} lines are missing here: nobody took them"
        about = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": said}
        target.handle(logging.makeLogRecord(about))
    target.handle(record)
