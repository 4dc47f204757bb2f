"""Looking for models' files, which may mean downloading them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine

from cachetools import LRUCache

from mlx_roster.config import ModelEntry
from mlx_roster.core import Located
from mlx_roster.errors import LoadFailed, RosterError
from mlx_roster.registry import events
from mlx_roster.registry.board import MANY_RECORDS
from mlx_roster.registry.journal import Journal
from mlx_roster.registry.ports import Sources

logger = logging.getLogger(__name__)


class Searches:
    """The searches that are going on, by job, and what the last one for each model found."""

    def __init__(
        self,
        sources: Sources,
        journal: Journal,
        feed: Callable[[events.Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._journal = journal
        self._feed = feed
        self._now = clock
        #: By model: what was found, and the entry that it was looked for under.
        self.found: LRUCache[str, tuple[ModelEntry, Located]] = LRUCache(2 * MANY_RECORDS)
        self._going: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._seen: dict[int, int] = {}
        self._again = itertools.count(-1, -1)

    def __contains__(self, job: object) -> bool:
        return job in self._going

    def start(self, model: str, entry: ModelEntry, job: int) -> asyncio.Task[None]:
        """Ends in Located or LocateFailed, or is cancelled: then nobody wants to know."""
        return self._start(model, job, lambda: self._search(model, entry, job))

    def again(self, model: str, entry: ModelEntry, then: Callable[[Located | None], None]) -> asyncio.Task[None]:
        """Look at the files of a model that is loaded, since its entry has changed. `then` hears what was found."""
        return self._start(model, next(self._again), lambda: self._look(model, entry, then))

    def _start(self, model: str, job: int, search: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        """One after the other for a model: sources are asked once at a time for a name."""
        before = [task for name, task in self._going.values() if name == model]
        for number, (name, task) in self._going.items():
            if name == model and number < 0:
                task.cancel()  # a look at what is no longer asked for

        async def in_turn() -> None:
            if before:
                await asyncio.wait(before)
            await search()

        task = asyncio.get_running_loop().create_task(in_turn())
        self._going[job] = model, task
        # Not part of the job: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda _: self._end(job))
        return task

    @property
    def going(self) -> list[int]:
        """The jobs."""
        return list(self._going)

    def cancel(self, job: int, stalled: str | None = None) -> None:
        """End it. Of one that has `stalled`, that is how it ends."""
        if job in self._going:
            model, task = self._going[job]
            if stalled is not None:
                self._journal.say("failed", model, logging.WARNING, job=job, why=stalled)
            task.cancel()

    def progressed(self) -> list[int]:
        """The jobs that have got further since this was last asked, or have not had their turn yet."""
        downloads, waiting = self._sources.progress(), self._sources.waiting()
        further = []
        for job, (model, _) in self._going.items():
            done, _ = downloads.get(model, (0, 0))
            # It may be less than before: a file that was not what it should have been is fetched anew.
            before, self._seen[job] = self._seen.get(job, 0), done
            if done > before or model in waiting:
                further.append(job)
        return further

    def cancel_all(self) -> None:
        for _, task in self._going.values():
            task.cancel()

    async def _search(self, model: str, entry: ModelEntry, job: int) -> None:
        try:
            located = await self._sources.locate(model, entry)
        except RosterError as error:
            self._journal.say("failed", model, logging.WARNING, job=job, why=error.message)
            self._feed(events.LocateFailed(self._now(), job, error))
        except Exception:
            logger.exception("looking for %s failed", model)
            self._feed(events.LocateFailed(self._now(), job, LoadFailed(f"{model} could not be found")))
        else:
            self.found[model] = entry, located
            self._journal.say("located", model, job=job, bytes=located.estimate, kv=located.kv, bank=located.bank)
            self._feed(events.Located(self._now(), job, located.estimate))

    async def _look(self, model: str, entry: ModelEntry, then: Callable[[Located | None], None]) -> None:
        try:
            located = await self._sources.locate(model, entry)
        except RosterError as error:
            logger.warning("%s keeps what was reserved for it: %s", model, error)
            then(None)
        else:
            then(located)

    def _end(self, job: int) -> None:
        del self._going[job]
        self._seen.pop(job, None)
