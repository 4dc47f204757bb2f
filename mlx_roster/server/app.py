"""The HTTP application: routes over a registry, inside one boundary."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_roster.errors import MethodNotAllowed, RouteNotFound
from mlx_roster.metrics import Metrics
from mlx_roster.registry import Registry
from mlx_roster.server.access import Access
from mlx_roster.server.admin import ReloadRoster, admin
from mlx_roster.server.boundary import Boundary
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.monitoring import Health, Ready, Scrape
from mlx_roster.server.openai.chat import chat_completions
from mlx_roster.server.openai.completions import text_completions
from mlx_roster.server.openai.desk import Desk
from mlx_roster.server.openai.models import Model, Models
from mlx_roster.server.openai.waiting import PULSE
from mlx_roster.server.openapi import Document

#: How long the end of a response that has no end of its own waits for a client that does not read, in seconds.
FAREWELL = 1.0


@runtime_checkable
class Connection(Protocol):
    """One of uvicorn's over HTTP. `scope` is that of its latest request, or None."""

    scope: Any
    transport: asyncio.Transport


class Application:
    """The ASGI application, and how it is told that the server shuts down."""

    def __init__(self, registry: Registry, reload: ReloadRoster, pulse: float) -> None:
        self._closing = asyncio.Event()
        self.metrics = metrics = Metrics(registry.overview, registry.counters, registry.lists, registry.stalled)
        registry.listen(metrics.heard)
        desk = Desk()
        chat = chat_completions(registry, metrics.gaps, desk, pulse)
        routes = [
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text_completions(registry, metrics.gaps, desk, pulse), methods=["POST"]),
            Route("/v1/models", Models(registry), methods=["GET"]),
            Route("/v1/models/{id:path}", Model(registry), methods=["GET"]),
            Route("/health", Health(registry), methods=["GET"]),
            Route("/ready", Ready(registry), methods=["GET"]),
            Route("/metrics", Scrape(metrics), methods=["GET"]),
            Route("/openapi.json", Document(registry), methods=["GET"]),
            *admin(registry, reload, self._closing),
        ]
        app = Starlette(
            routes=routes,
            middleware=[Middleware(Boundary, metrics.ended), Middleware(Access, registry=registry, routes=routes)],
            exception_handlers={HTTPException: _unrouted},
        )
        app.router.redirect_slashes = False
        # Now, and not with the first request: a route without a rule is to end the start.
        app.middleware_stack = app.build_middleware_stack()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self, connections: Collection[object] = ()) -> None:
        """End the responses that have no end of their own: a shutdown would wait for them as for any other.

        Of the server's `connections`, those that are still at such an end after a second are cut: their clients do not
        read. Called on the event loop.
        """
        self._closing.set()
        asyncio.get_running_loop().call_later(FAREWELL, _cut, connections)


def create_app(registry: Registry, reload: ReloadRoster, *, pulse: float = PULSE) -> Application:
    """The application. The registry is open before the first request and outlives the last one.

    `reload` reads the roster anew and applies it to the registry: what `POST /admin/reload` does. A stream that says
    nothing for `pulse` seconds says that it is still there.
    """
    return Application(registry, reload, pulse)


def _cut(connections: Collection[object]) -> None:
    # To give up in the endpoint is not enough: a transport that is closed still waits until all it has is read.
    for connection in list(connections):
        if isinstance(connection, Connection):
            exchange = Exchange.find(connection.scope or {})
            if exchange is not None and exchange.endless:
                connection.transport.abort()


async def _unrouted(request: Request, error: Exception) -> Response:
    """Starlette's router found no route, or not this method on it: say so in our own terms.

    OPTIONS is no route's own method: every route answers it, and alike.
    """
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.scope['path'][:200]}"
    if error.status_code == 405:
        allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
        Exchange.of(request.scope).add_header("allow", ", ".join([*allowed, "OPTIONS"]))
        if request.method == "OPTIONS":
            return Response(status_code=204)
        raise MethodNotAllowed(f"{asked} is not possible; the method may be {' or '.join(allowed)}") from error
    if error.status_code == 404:
        raise RouteNotFound(f"there is no {asked}; this server speaks OpenAI's API, under /v1") from error
    raise error
