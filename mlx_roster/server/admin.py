"""`/admin/…`: what an operator sees, and tells the registry to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_roster.errors import ModelNotFound
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import ModelStatus, Reload
from mlx_roster.server.body import read_flags
from mlx_roster.server.disconnect import cancel_on_disconnect
from mlx_roster.server.discreet import discreet
from mlx_roster.server.errors import RosterRefused
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.reply import reply
from mlx_roster.server.watching import Events

#: Reads the roster anew; its argument says who asked, for the log.
ReloadRoster = Callable[[str], Awaitable[Reload]]

Flags = Mapping[str, bool]
#: What is done to a model, by its name: the HTTP status to answer with, and how the model stands then.
Deed = Callable[[str, Flags], Awaitable[tuple[int, ModelStatus]]]

#: The states in which a model that is to go has not gone yet.
_STILL_THERE = ("loading", "ready", "draining", "unloading")


def admin(registry: Registry, reload: ReloadRoster, closing: asyncio.Event) -> list[Route]:
    """The routes below `/admin`. `closing` ends what has no end of its own."""
    deeds = _deeds(registry)
    return [
        Route("/admin/status", Status(registry), methods=["GET"]),
        Route("/admin/events", Events(registry, closing), methods=["GET"]),
        Route("/admin/reload", ReloadNow(registry, reload), methods=["POST"]),
        *(Route(f"/admin/models/{{id:path}}/{verb}", deed, methods=["POST"]) for verb, deed in deeds.items()),
        Route("/admin/models/{id:path}", OneModel(registry, deeds), methods=["GET"]),
    ]


class Status:
    """`GET /admin/status`: the whole registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        overview = discreet(self._registry.overview(), self._registry.roster.base)
        await reply(overview)(scope, receive, send)


class OneModel:
    """`GET /admin/models/{id}`: one model, by id or alias."""

    def __init__(self, registry: Registry, verbs: Collection[str]) -> None:
        self._registry = registry
        self._verbs = verbs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["id"]
        try:
            status = self._registry.model_status(name)
        except ModelNotFound as error:
            _, slash, verb = name.rpartition("/")
            if slash and verb in self._verbs:
                # An id may end like this too, so the router lets it through.
                raise HTTPException(405, headers={"Allow": "POST"}) from error
            raise
        await reply(status)(scope, receive, send)


class Act:
    """`POST /admin/models/{id}/VERB`: does it, and answers with the model's state after it.

    A client that leaves stops waiting, and a load that nobody else waits for ends.
    """

    def __init__(self, registry: Registry, deed: Deed, flags: Collection[str] = ()) -> None:
        self._registry = registry
        self._deed = deed
        self._flags = flags

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        flags = await read_flags(scope, receive, self._registry.roster.server, self._flags)
        name = scope["path_params"]["id"]
        exchange.account.model = self._registry.model_status(name).id
        client = cancel_on_disconnect(receive)
        try:
            async with client:
                code, status = await self._deed(name, flags)
                await reply(status, code)(scope, receive, send)
        finally:
            exchange.client_gone = client.gone


def _deeds(registry: Registry) -> dict[str, Act]:
    async def load(name: str, flags: Flags) -> tuple[int, ModelStatus]:
        return 200, await registry.load(name)

    async def unload(name: str, flags: Flags) -> tuple[int, ModelStatus]:
        status = registry.unload(name, force=flags.get("force", False))
        if flags.get("wait", False):
            # By then somebody may have asked for it again: that is another one.
            return 200, await registry.gone(name)
        return (202 if status.state in _STILL_THERE else 200), status

    async def pin(name: str, flags: Flags) -> tuple[int, ModelStatus]:
        return 200, registry.pin(name, pinned=True)

    async def unpin(name: str, flags: Flags) -> tuple[int, ModelStatus]:
        return 200, registry.pin(name, pinned=False)

    return {
        "load": Act(registry, load),
        "unload": Act(registry, unload, ("force", "wait")),
        "pin": Act(registry, pin),
        "unpin": Act(registry, unpin),
    }


class ReloadNow:
    """`POST /admin/reload`. Goes on when the client leaves: half a reload is none."""

    def __init__(self, registry: Registry, reload: ReloadRoster) -> None:
        self._registry = registry
        self._reload = reload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_flags(scope, receive, self._registry.roster.server, ())
        result = discreet(await self._reload("POST /admin/reload"), self._registry.roster.base)
        if not result.ok:
            raise RosterRefused(result.error or "the roster could not be read")
        await reply(result)(scope, receive, send)
