"""What is said of the whole registry, for operators and for metrics."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from mlx_roster.errors import QueueFull
from mlx_roster.testing import FakeWorkers
from tests.registry.test_operating import registry
from tests.registry.test_registry import ATLAS, SCRIBE, run, say_once, settled


def test_the_overview_counts_who_waits_as_the_limit_does() -> None:
    async def test() -> None:
        models = "atlas: {source: ./atlas, max_concurrency: 1}, scribe: {source: ./scribe}"
        workers = FakeWorkers()
        workers.hold("load scribe")
        async with (
            registry(f"scheduling: {{max_queued: 3}}\nmodels: {{{models}}}", workers=workers) as r,
            AsyncExitStack() as leases,
        ):
            for _ in range(3):
                await leases.enter_async_context(r.lease(ATLAS))
            # Two have a lease and no place in the batch; of those who wait for a load, an operator does not count.
            waiter = asyncio.create_task(say_once(r, SCRIBE))
            operator = asyncio.create_task(r.load("scribe"))
            await settled()
            overview = r.overview()
            assert (overview.queued, overview.max_queued) == (3, 3)
            with pytest.raises(QueueFull):
                await leases.enter_async_context(r.lease(ATLAS))
            for task in (waiter, operator):
                task.cancel()
            await asyncio.wait([waiter, operator])
            assert r.overview().queued == 2

    run(test())
