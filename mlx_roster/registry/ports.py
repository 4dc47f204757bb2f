"""What the registry needs of workers, and nothing more: `workers/` and `testing.py` both fit.

Nothing here says that a worker is one process, or a process at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from mlx_roster.config import ModelEntry
from mlx_roster.core import Capabilities, Delta, Generation, Located, Measured, ModelSource, Owner


class Stream(Protocol):
    """The Deltas of one sequence, in order, ending with the one that has `finish`.

    Raises RequestError where the worker refuses the sequence and WorkerCrashed where the worker is lost.
    `cancel` may be called at any time, any number of times, and takes effect within one decode step.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def waiting(self) -> list[Delta]:
        """The Deltas that are here already, now taken: a slow consumer merges them. May be empty."""

    def cancel(self) -> None: ...


class Worker(Protocol):
    """One loaded model."""

    @property
    def measured(self) -> Measured:
        """The latest report."""

    @property
    def capabilities(self) -> Capabilities: ...

    def submit(self, generation: Generation) -> Stream:
        """Start a sequence now. Never blocks."""

    async def stop(self) -> None:
        """Let the worker go; returns when all that it held is given back. Idempotent."""


class Workers(Protocol):
    """Where workers come from."""

    async def load(self, source: ModelSource, owner: Owner) -> Worker:
        """A worker with `source` loaded. Raises LoadFailed (LoadOutOfMemory) or WorkerCrashed.

        Cancelling the call ends the load and gives back what it took. `owner` hears of the worker's death only after
        this has returned.
        """


class Sources(Protocol):
    """Where models come from. Single-flight per entry; a failure is not remembered."""

    async def locate(self, name: str, entry: ModelEntry) -> Located:
        """Downloads what is not here yet. Raises LoadFailed. Cancelling leaves the job to others who wait for it."""
