"""When a reload happens, and what it says: over a registry that only notes what it is told."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mlx_roster.config import Roster
from mlx_roster.config.load import parse
from mlx_roster.errors import ConfigError
from mlx_roster.registry.overview import Reload
from mlx_roster.registry.reloading import Reloader
from mlx_roster.registry.revision import Revision

KEY = "auth: {keys: [{name: laptop, key: secret-0123456789}]}"


def roster(*models: str, more: str = "") -> Roster:
    entries = ", ".join(f"{name}: {{source: ./{name}}}" for name in models)
    return parse(f"{more}\nmodels: {{{entries}}}\n", name="roster.yaml", base=Path("/fake"))


class Applied:
    """A `Reconfigurable`: what it was given, and how the reloads ended."""

    def __init__(self) -> None:
        self.roster = roster("atlas")
        self.budgets: list[int] = []
        self.ended: list[Reload] = []

    def revision(self, roster: Roster) -> Revision:
        return Revision.between(self.roster, roster, Path("/fake"))

    def apply(self, revision: Revision, budget: int) -> None:
        self.roster = revision.roster
        self.budgets.append(budget)

    def reload_ended(self, reload: Reload) -> None:
        self.ended.append(reload)


class File:
    """What is read: at each time, the `content` of when the reading began. `gate` holds it up while it is closed."""

    def __init__(self) -> None:
        self.content: Roster | Exception = roster("atlas")
        self.reads = 0
        self.reading = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> tuple[Roster, int]:
        self.reads += 1
        content = self.content
        self.reading.set()
        self.gate.wait()
        if isinstance(content, Exception):
            raise content
        return content, self.reads

    async def begun(self) -> None:
        """Wait until somebody reads."""
        await asyncio.to_thread(self.reading.wait)
        self.reading.clear()


@asynccontextmanager
async def reloading() -> AsyncIterator[tuple[Applied, File, Reloader]]:
    applied, file = Applied(), File()
    async with Reloader(applied, file) as reloader:
        yield applied, file, reloader


async def asked(reloader: Reloader, why: str = "test") -> asyncio.Task[Reload]:
    """A reload that has been asked for."""
    task = asyncio.ensure_future(reloader.reload(why))
    await asyncio.sleep(0)
    return task


def test_what_is_read_is_applied_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.content = roster("scribe")
            reload = await reloader.reload("SIGHUP")
            assert (reload.ok, reload.error, reload.notes) == (True, None, ())
            assert (reload.added, reload.changed, reload.removed) == (("scribe",), (), ("atlas",))
            assert list(applied.roster.models) == ["scribe"]
            assert (applied.budgets, applied.ended) == ([1], [reload])

    with caplog.at_level(logging.INFO):
        asyncio.run(test())
    # How it went is for the registry to say.
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mlx_roster.")]
    assert ours == ["reloading the roster: SIGHUP"]


def test_an_error_changes_nothing_and_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.content = ConfigError("roster.yaml:1: first\nroster.yaml:2: second")
            reload = await reloader.reload("test")
            assert (reload.ok, reload.error) == (False, "roster.yaml:1: first\nroster.yaml:2: second")
            assert (applied.budgets, applied.ended) == ([], [reload])
            assert list(applied.roster.models) == ["atlas"]
            file.content = roster("atlas", "scribe")
            assert (await reloader.reload("test")).added == ("scribe",)

    asyncio.run(test())
    (error,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert error.getMessage() == (
        "the roster was not reloaded, everything stays as it was:\nroster.yaml:1: first\nroster.yaml:2: second"
    )


def test_a_bug_in_the_reading_is_heard_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.content = ZeroDivisionError("/a/path")
            reload = await reloader.reload("test")
            assert not reload.ok
            assert "/a/path" not in str(reload.error)
            file.content = roster("scribe")
            assert (await reloader.reload("test")).ok
            assert len(applied.ended) == 2

    asyncio.run(test())
    assert "ZeroDivisionError" in caplog.text


def test_two_quick_edits_end_in_the_last() -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.gate.clear()
            file.content = roster("first")
            first = await asked(reloader)
            await file.begun()
            # While that is read, with what it found already in hand:
            later = []
            for name in ("second", "third"):
                file.content = roster(name)
                later.append(await asked(reloader))
            file.gate.set()
            assert (await first).added == ("first",)
            assert [(await reload).added for reload in later] == [("third",)] * 2
            assert file.reads == 2
            assert list(applied.roster.models) == ["third"]

    asyncio.run(test())


def test_an_error_does_not_keep_the_next_from_its_turn() -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.gate.clear()
            file.content = ConfigError("half an edit")
            first = await asked(reloader)
            await file.begun()
            file.content = roster("scribe")
            second = await asked(reloader)
            file.gate.set()
            assert [(await first).ok, (await second).ok] == [False, True]
            assert [reload.ok for reload in applied.ended] == [False, True]

    asyncio.run(test())


def test_those_who_ask_before_anything_is_read_share_one_reading() -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            reloads = await asyncio.gather(*(reloader.reload("test") for _ in range(5)))
            assert file.reads == len(applied.ended) == 1
            assert len({id(reload) for reload in reloads}) == 1

    asyncio.run(test())


class Knot:
    """What only the garbage collector finds, as a request that was answered."""

    def __init__(self) -> None:
        self.itself = self


def test_what_goes_on_during_a_reload_is_not_kept_for_ever() -> None:
    async def test() -> None:
        async with Reloader(Applied(), File()) as reloader:
            knot = Knot()
            left = weakref.ref(knot)
            assert (await reloader.reload("a test")).ok
            del knot
            gc.collect()
            assert left() is None

    asyncio.run(test())


def test_who_stops_waiting_does_not_stop_the_reload() -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.gate.clear()
            file.content = roster("scribe")
            first, second = await asked(reloader), await asked(reloader)
            await file.begun()
            first.cancel()
            file.gate.set()
            assert (await second).ok
            assert first.cancelled()
            assert list(applied.roster.models) == ["scribe"]

    asyncio.run(test())


def test_closing_ends_what_is_under_way() -> None:
    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.gate.clear()
            first = await asked(reloader)
            await file.begun()
            second = await asked(reloader)
        file.gate.set()
        for waiting in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (applied.budgets, applied.ended, file.reads) == ([], [], 1)

    asyncio.run(test())


def test_what_takes_a_restart_is_noted_and_the_rest_applied(caplog: pytest.LogCaptureFixture) -> None:
    more = "server: {host: localhost, port: 9000, strict_fields: true}\nmemory: {spare_worker: false}"
    notes = (
        "server.host: localhost takes a restart, it stays 127.0.0.1",
        "server.port: 9000 takes a restart, it stays 8080",
        "memory.spare_worker: false takes a restart, it stays true",
    )

    async def test() -> None:
        async with reloading() as (applied, file, reloader):
            file.content = roster("atlas", "scribe", more=more)
            # The second time, too: it is compared with what runs and not with what was asked for last.
            for added in (("scribe",), ()):
                reload = await reloader.reload("test")
                assert (reload.ok, reload.added, reload.notes) == (True, added, notes)
            assert applied.roster.server.strict_fields
            file.content = roster("atlas")
            assert (await reloader.reload("test")).notes == ()

    asyncio.run(test())
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [*notes, *notes]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_for_others_keeps_its_keys_until_it_is_restarted(host: str) -> None:
    async def scenario() -> None:
        applied, file = Applied(), File()
        applied.roster = roster("atlas", more=f'server: {{host: "{host}"}}\n{KEY}')
        async with Reloader(applied, file) as reloader:
            # The file is right as it stands. What is bound, is bound.
            file.content = roster("atlas", "scribe")
            reload = await reloader.reload("test")
            assert (reload.ok, applied.budgets) == (False, [])
            assert reload.error is not None
            assert reload.error.startswith(f"auth.keys: the server listens on {host} until it is restarted")
            file.content = roster("atlas", more=KEY)
            reload = await reloader.reload("test")
            assert reload.ok
            assert reload.notes == (f"server.host: 127.0.0.1 takes a restart, it stays {host}",)
            file.content = roster("atlas")
            assert not (await reloader.reload("test")).ok

    asyncio.run(scenario())


def test_a_server_for_this_machine_may_lose_its_keys() -> None:
    async def scenario() -> None:
        applied, file = Applied(), File()
        applied.roster = roster("atlas", more=KEY)
        async with Reloader(applied, file) as reloader:
            file.content = roster("atlas")
            reload = await reloader.reload("test")
            assert (reload.ok, reload.settings) == (True, ("auth",))

    asyncio.run(scenario())


def test_another_key_is_another_auth_and_no_more_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        caplog.set_level(logging.DEBUG)
        applied, file = Applied(), File()
        applied.roster = roster("atlas", more=KEY)
        async with Reloader(applied, file) as reloader:
            file.content = roster("atlas", more=KEY.replace("secret", "secret-too"))
            reload = await reloader.reload("test")
            assert (reload.ok, reload.settings, reload.changed) == (True, ("auth",), ())
            assert "secret" not in f"{reload!r}{applied.roster!r}{applied.roster.model_dump()!r}{caplog.text}"

    asyncio.run(scenario())
