"""What an engine says, and to whom."""

from __future__ import annotations

import logging
from typing import Protocol

from mlx_roster.core import Counters, Delta, Measured
from mlx_roster.engine.scheduler import Scheduler
from mlx_roster.engine.sequences import Cancel, Rejection
from mlx_roster.engine.tally import Tally
from mlx_roster.errors import InternalError, RosterError
from mlx_roster.logs import fields, written

logger = logging.getLogger(__name__)


class Output(Protocol):
    """Where the engine's events go. All of it is called on the engine's thread, and must not block for long."""

    def step(self, deltas: list[Delta]) -> None:
        """All that one step produced; never empty."""

    def rejected(self, sequence: int, error: RosterError) -> None:
        """A sequence that cannot start, or cannot go on: the last that is said of it."""

    def report(self, measured: Measured) -> None:
        """The engine holds this much: said when it has nothing to do, and when that has changed a good deal."""

    def counted(self, counters: Counters) -> None:
        """It has come so far: said before what a sequence ends with, when it has nothing to do, and now and then."""


class Publisher:
    """Says what steps produced. For the engine's thread."""

    def __init__(self, output: Output, scheduler: Scheduler, tally: Tally) -> None:
        self._output = output
        self._scheduler = scheduler
        self._tally = tally

    def publish(self, said: list[Delta | Rejection]) -> None:
        """All of one step."""
        deltas = [one for one in said if isinstance(one, Delta)]
        if self._tally.due:
            self._output.counted(self._tally.weighed())
        elif any(delta.finish is not None for delta in deltas):
            # Whoever hears of the end may look at the sums.
            self._output.counted(self._tally.counters())
        if deltas:
            self._say(deltas, refused=set())
        if len(deltas) < len(said):
            for one in said:
                if isinstance(one, Rejection):
                    self.reject(one)

    def _say(self, deltas: list[Delta], refused: set[int]) -> None:
        try:
            self._output.step(deltas)
        except ValueError:
            # What one of them has cannot be put into a frame: that is no fault of the others.
            if len(deltas) > 1:
                for delta in deltas:
                    if delta.sequence not in refused:
                        self._say([delta], refused)
                return
            refused.add(deltas[0].sequence)
            number, request = deltas[0].sequence, self._scheduler.request(deltas[0].sequence)
            about = fields(request_id=request)
            logger.exception("what request %s is answered cannot be passed on", written(request), extra=about)
            self._scheduler.apply(Cancel(number))
            self.reject(Rejection(number, InternalError("the answer cannot be passed on"), request))

    def reject(self, rejection: Rejection) -> None:
        """Refuse a sequence, or end it."""
        request, error = rejection.request, rejection.error
        # Not what it says: that may quote the request.
        about = fields(event="rejected", request_id=request, code=error.code)
        logger.debug("request %s is refused: %s", written(request), error.code, extra=about)
        self._output.rejected(rejection.sequence, error)
