"""Writing on a thread of its own: whoever has something to say never waits for whoever reads it.

A terminal that was stopped with Ctrl-S, a pager, or a pipe into a process that hangs takes nothing any more after a few
kilobytes; a server that waited for it would stand still with it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

#: What may wait to be written. A line or so each.
WAITING = 10_000


class Scribe:
    """Does what it is told to, in order, on one thread. `put` may be called on any, and never waits."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        # Nothing can be done about one that never comes back from a write.
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._jobs.empty()

    def put(self, job: Callable[[], None]) -> bool:
        """Have `job` done. False: too much waits already, and it will not be."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def close(self, timeout: float) -> bool:
        """Do what waits, for `timeout` seconds at most. Whether all of it is done. Nothing may be put any more."""
        try:
            self._jobs.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class ScribedLog(logging.Handler):
    """Has `target` write the records. Those for which there is no room are dropped, and counted in the log itself."""

    def __init__(self, scribe: Scribe, target: logging.Handler) -> None:
        super().__init__()
        #: May be replaced: records go to the one that there was when they were made.
        self.target = target
        self._scribe = scribe
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        # What it speaks of may be another by the time that it is written.
        record.msg, record.args = record.getMessage(), None
        target = self.target
        if not self._scribe.put(lambda: self._write(record, target)):
            self._dropped += 1

    def _write(self, record: logging.LogRecord, target: logging.Handler) -> None:
        if dropped := self._dropped:
            self._dropped -= dropped
            target.handle(
                logging.makeLogRecord(
                    {
                        "name": __name__,
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": f"{dropped} lines are missing here: nobody took them",
                    }
                )
            )
        target.handle(record)
