"""Reloads: a roster is read off the event loop and applied to a running registry in one step, or not at all."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Protocol, Self

from mlx_roster.config import Roster
from mlx_roster.config.settings import is_loopback
from mlx_roster.errors import ConfigError
from mlx_roster.registry.overview import Reload
from mlx_roster.registry.revision import Revision

logger = logging.getLogger(__name__)

#: Models and adapters of a roster that the garbage collector takes too long to go through.
LARGE = 2000

#: What a running server cannot change: section and key.
_FIXED = (("server", "host"), ("server", "port"), ("memory", "spare_worker"))


class Reconfigurable(Protocol):
    """What a Reloader needs of a `Registry`."""

    @property
    def roster(self) -> Roster: ...

    def revision(self, roster: Roster) -> Revision: ...

    def apply(self, revision: Revision, budget: int) -> None: ...

    def reload_ended(self, reload: Reload) -> None: ...


class Reloader:
    """Applies what `read` gives to a registry. Use as an async context manager, within the registry's own.

    `read` gives a roster and its budget in bytes, and has checked both. It is called on a thread and may block. What
    it raises, ConfigError or a bug, changes nothing: it ends in the log and in the Reload.
    """

    def __init__(self, registry: Reconfigurable, read: Callable[[], tuple[Roster, int]]) -> None:
        self._registry = registry
        self._read = read
        self._started = registry.roster
        self._current: asyncio.Task[Reload] | None = None
        self._next: asyncio.Task[Reload] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if running := [task for task in (self._current, self._next) if task is not None and not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def reload(self, why: str) -> Reload:
        """Read the roster after this call and apply it: how that went. `why` is for the log.

        Reloads go one after the other. All who ask while one is reading share the one after it, so that the last of
        several quick edits is what counts. Cancelling the call does not end the reload.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._turn(self._current))
        logger.info("reloading the roster: %s", why)
        return await asyncio.shield(self._next)

    async def _turn(self, before: asyncio.Task[Reload] | None) -> Reload:
        if before is not None:
            await asyncio.wait([before])
        # Who asks from here on may have changed what is being read already.
        self._current, self._next = self._next, None
        reload = await self._reloaded()
        self._registry.reload_ended(reload)
        return reload

    async def _reloaded(self) -> Reload:
        # Of thousands of models come objects without end, and no collection lets go of the interpreter: the streams of
        # the models that are loaded would stand still for it.
        gc.disable()
        try:
            revision, budget, notes = await asyncio.to_thread(self._prepared)
        except ConfigError as error:
            return _refused(error.message)
        except Exception:
            # The thread's boundary: a bug there must not go unheard, since nobody may be waiting for the answer.
            logger.exception("the roster was not reloaded, everything stays as it was")
            return Reload(0.0, ok=False, error="the roster could not be read; the server's log has more")
        finally:
            gc.enable()
        self._registry.apply(revision, budget)
        if sum(1 + len(entry.adapters) for entry in revision.roster.models.values()) > LARGE:
            # It is there to stay. So is what is going on right now, and leaves something behind that only a collection
            # would find: in a small roster's case that costs more than it saves.
            gc.freeze()
        for note in notes:
            logger.warning("%s", note)
        return Reload(
            0.0,
            ok=True,
            added=revision.added,
            changed=revision.changed,
            removed=revision.removed,
            settings=revision.settings,
            notes=notes,
        )

    def _prepared(self) -> tuple[Revision, int, tuple[str, ...]]:
        """All that can be done beforehand, on a thread: with thousands of models it takes a while."""
        roster, budget = self._read()
        self._check_reach(roster)
        return self._registry.revision(roster), budget, tuple(self._notes(roster))

    def _check_reach(self, roster: Roster) -> None:
        """The file may say loopback now, and need no keys for that. Bound is still what was bound at the start."""
        host = self._started.server.host
        if not roster.auth.keys and not is_loopback(host):
            raise ConfigError(
                f"auth.keys: the server listens on {host} until it is restarted, where whoever reaches it could use "
                "it: it does not go on without keys"
            )

    def _notes(self, roster: Roster) -> list[str]:
        """What `roster` asks for that this process cannot do, compared to what it was started with."""
        sections = {section for section, _ in _FIXED}
        was, now = (each.model_dump(include=sections) for each in (self._started, roster))
        return [
            f"{section}.{key}: {_yaml(now[section][key])} takes a restart, it stays {_yaml(was[section][key])}"
            for section, key in _FIXED
            if now[section][key] != was[section][key]
        ]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refused(reason: str) -> Reload:
    logger.error("the roster was not reloaded, everything stays as it was:\n%s", reason)
    return Reload(0.0, ok=False, error=reason)
