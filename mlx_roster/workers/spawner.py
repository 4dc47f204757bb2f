"""Where worker processes come from: always one spare ahead, so that a load costs weights and tokenizer only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import Self

from mlx_roster.core import Device, ModelSource, Owner
from mlx_roster.errors import RosterError, WorkerCrashed
from mlx_roster.workers.blas import preloaded
from mlx_roster.workers.process import PROGRAM, ProcessWorker

#: How long the next spare waits for the first token of the model that was loaded last, in seconds.
PATIENCE = 5.0


class Spawner:
    """Starts workers; satisfies `registry.ports.Workers`. Use as an async context manager.

    The first worker is started on entry, whether or not spares are kept: it is what knows the device.
    `program`: see `ProcessWorker.spawn`.
    """

    def __init__(self, *, keep_spare: bool = True, program: Sequence[str] = PROGRAM) -> None:
        self._keep_spare = keep_spare
        self._program = program
        # Whatever a worker loads is on this disk already: no library in it has any business with the network.
        self._environment = {**preloaded(os.environ), "HF_HUB_OFFLINE": "1"}
        self._spare: asyncio.Task[ProcessWorker] | None = None
        self._refills: set[asyncio.Task[None]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        self._spare = self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False
        for refill in self._refills:
            refill.cancel()
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await self._discard(spare)

    def __del__(self) -> None:
        if self._open:
            warnings.warn(f"{self!r} was dropped without being closed", ResourceWarning, stacklevel=1)

    async def device(self) -> Device:
        """The accelerator, as the first worker sees it. To be asked before the first load.

        Raises LoadFailed where none could be started, and WorkerCrashed with its last words where it died at once.
        """
        assert self._spare is not None, "asked before entering, or after the first load"
        worker = await asyncio.shield(self._spare)
        try:
            return await worker.greeting()
        except WorkerCrashed as error:
            raise WorkerCrashed(await worker.last_words() or error.message) from error

    async def load(self, source: ModelSource, owner: Owner) -> ProcessWorker:
        """See `registry.ports.Workers.load`."""
        worker = await self._take()
        try:
            try:
                await worker.load(source, owner)
            except WorkerCrashed:
                if worker.begun:
                    raise
                # It was lost before it had even begun, for which no model is to blame: once, another takes its place.
                worker = await self._spawn()
                await worker.load(source, owner)
        finally:
            if self._keep_spare:
                # Importing mlx takes a processor for a second: after the first token, which somebody waits for.
                refill = asyncio.get_running_loop().create_task(self._refill(worker))
                self._refills.add(refill)
                refill.add_done_callback(self._refills.discard)
        return worker

    async def _refill(self, worker: ProcessWorker) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await worker.worked.wait()
        if self._open and self._spare is None:
            self._spare = self._start()

    def _start(self) -> asyncio.Task[ProcessWorker]:
        return asyncio.get_running_loop().create_task(self._spawn())

    async def _spawn(self) -> ProcessWorker:
        return await ProcessWorker.spawn(self._environment, self._program)

    async def _take(self) -> ProcessWorker:
        """The spare, if there is one and it lives; else a fresh worker."""
        task, self._spare = self._spare or self._start(), None
        try:
            worker = await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._give_back(task)
            raise
        except RosterError:
            return await self._spawn()
        return worker if worker.alive else await self._spawn()

    async def _give_back(self, task: asyncio.Task[ProcessWorker]) -> None:
        """A load was cancelled while its worker was being started."""
        if self._open and self._spare is None:
            self._spare = task
        else:
            await self._discard(task)

    async def _discard(self, task: asyncio.Task[ProcessWorker]) -> None:
        with contextlib.suppress(RosterError):  # it could not be started: then there is nothing to end
            await (await task).kill()
