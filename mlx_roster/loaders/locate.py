"""Finding a model before it is loaded: where it is on this machine, and what it will take."""

from __future__ import annotations

import asyncio

from mlx_roster.config import ModelEntry
from mlx_roster.core import Located
from mlx_roster.loaders import sizes, source


class Locator:
    """Local folders as they are, Hub repos through the local cache. Satisfies `registry.ports.Sources`.

    Disk and network are left to threads: nothing here holds up the event loop.
    """

    def __init__(self, headroom: float) -> None:
        #: The downloads that are going on: model → (bytes here, bytes in all).
        self.downloads: dict[str, tuple[int, int]] = {}
        self._headroom = headroom
        self._jobs: dict[str, asyncio.Task[Located]] = {}

    async def locate(self, name: str, entry: ModelEntry) -> Located:
        """See `registry.ports.Sources`."""
        job = self._jobs.get(name)
        if job is None:
            job = self._jobs[name] = asyncio.create_task(asyncio.to_thread(self._find, name, entry))
            job.add_done_callback(lambda _: self._jobs.pop(name))
        return await asyncio.shield(job)

    def _find(self, name: str, entry: ModelEntry) -> Located:
        def on_progress(done: int, total: int) -> None:
            self.downloads[name] = (done, total)

        try:
            folder = source.resolve(name, entry, on_progress)
        finally:
            self.downloads.pop(name, None)
        adapters = [adapter.source for adapter in entry.adapters.values()]
        estimate = sizes.estimate(folder, adapters, entry.max_adapters, self._headroom)
        return Located(str(folder), estimate.total, estimate.bank)
