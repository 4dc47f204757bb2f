"""What the registry needs of workers, and nothing more: `workers/` and `testing.py` both fit.

Nothing here says that a worker is one process, or a process at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Protocol

from mlx_roster.config import ModelEntry
from mlx_roster.core import Capabilities, Counters, Delta, Generation, Limits, Located, Measured, ModelSource, Owner
from mlx_roster.errors import RosterError


class Stream(Protocol):
    """The Deltas of one sequence, in order, ending with the one that has `finish`.

    Raises RequestError where the worker refuses the sequence and WorkerCrashed where the worker is lost.
    `cancel` may be called at any time, any number of times, and takes effect within one decode step.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def waiting(self) -> list[Delta]:
        """The Deltas that are here already, now taken: a slow consumer merges them. May be empty."""

    @property
    def unread(self) -> int:
        """Bytes that the Deltas which are here already take, about."""

    def cancel(self) -> None: ...


class Worker(Protocol):
    """One loaded model."""

    @property
    def measured(self) -> Measured:
        """The latest report."""

    @property
    def counters(self) -> Counters:
        """What it counts, as it was last heard. What was said of a finished sequence is in it already."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def progressed(self) -> float:
        """When it was loaded or last produced anything for a sequence, in `time.monotonic()`."""

    @property
    def awaited(self) -> float | None:
        """Since when it has been at one thing, or has not been heard although it was given something to do, in
        `time.monotonic()`; None where it has nothing to do."""

    def submit(self, generation: Generation) -> Sequence[Stream]:
        """Start `generation.n` sequences now. Never blocks."""

    def share(self, size: int) -> None:
        """It may take so many bytes from now on. Past that it gives up its prompt cache and admits no new sequence as
        long as others run. Never blocks."""

    def limit(self, limits: Limits) -> None:
        """Live by these limits from now on; adapters that were pinned are so no longer. Never blocks."""

    def cut(self, error: RosterError) -> None:
        """End every open stream with `error`, now. To be followed by `stop`."""

    async def stop(self) -> None:
        """Let the worker go; returns when all that it held is given back. Idempotent."""

    async def kill(self) -> None:
        """As `stop`, of one that would not hear it."""


class Workers(Protocol):
    """Where workers come from."""

    async def load(self, source: ModelSource, owner: Owner) -> Worker:
        """A worker with `source` loaded. Raises LoadFailed (LoadOutOfMemory) or WorkerCrashed.

        Cancelling the call ends the load and gives back what it took. `owner` hears of the worker's death only after
        this has returned.
        """


class Sources(Protocol):
    """Where models come from. A failure is not remembered."""

    async def locate(self, name: str, entry: ModelEntry) -> Located:
        """Downloads what is not here yet. Raises LoadFailed. Cancelling the call ends the download; what is there of it
        is kept, and the next call goes on from there. Called once at a time for a name."""

    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The downloads that are going on: name → (bytes here, bytes in all)."""

    def waiting(self) -> Collection[str]:
        """The names of those whose download has not begun, since there are enough others: they may wait for long."""
