"""Searches that take long, and which of them get any further."""

from __future__ import annotations

import asyncio

import pytest

from mlx_roster.core import Ref
from mlx_roster.errors import LoadFailed
from mlx_roster.testing import FakeSources
from tests.registry.test_operating import registry
from tests.registry.test_registry import Clock, run, say_once, settled


def test_a_download_that_waits_for_its_turn_is_not_ended_for_standing_still() -> None:
    async def test() -> None:
        sources, clock = FakeSources(), Clock()
        sources.gates["atlas"] = asyncio.Event()
        sources.queued.add("atlas")
        text = "scheduling: {queue_timeout: 1d}\nmodels: {atlas: {source: ./atlas}}"
        async with registry(text, sources=sources, clock=clock) as r:
            task = asyncio.create_task(say_once(r, Ref("atlas")))
            await settled()

            def pass_by(seconds: int) -> None:
                # In one leap it would seem that this process had stood still itself.
                for _ in range(seconds):
                    clock.at += 1
                    r.tick()

            pass_by(2500)
            await settled()
            assert not task.done()
            sources.queued.clear()  # it has begun: now its time runs
            pass_by(299)
            await settled()
            assert not task.done()
            pass_by(1)
            with pytest.raises(LoadFailed, match="did not get any further for 5m"):
                await task

    run(test())


def test_a_download_that_begins_anew_gets_further_from_there() -> None:
    async def test() -> None:
        sources, clock = FakeSources(), Clock()
        sources.gates["atlas"] = asyncio.Event()
        async with registry("models: {atlas: {source: ./atlas}}", sources=sources, clock=clock) as r:
            task = asyncio.create_task(say_once(r, Ref("atlas")))
            await settled()
            for done in (90, 0, 1, 2, 3, 3):
                sources.downloads["atlas"] = (done, 100)
                for _ in range(150):
                    clock.at += 1
                    r.tick()
                await settled()
                assert not task.done()
            for _ in range(2):
                clock.at += 1
                r.tick()
            with pytest.raises(LoadFailed, match="did not get any further for 5m"):
                await task

    run(test())
