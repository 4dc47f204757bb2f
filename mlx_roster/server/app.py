"""The HTTP application: routes over a registry, inside one boundary."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_roster.errors import MethodNotAllowed, RouteNotFound
from mlx_roster.metrics import Metrics
from mlx_roster.registry import Registry
from mlx_roster.server.admin import ReloadRoster, admin
from mlx_roster.server.boundary import Boundary, Exchange
from mlx_roster.server.monitoring import Health, Ready, Scrape
from mlx_roster.server.openai.chat import chat_completions
from mlx_roster.server.openai.completions import text_completions
from mlx_roster.server.openai.models import Model, Models


class Application:
    """The ASGI application, and how it is told that the server shuts down."""

    def __init__(self, registry: Registry, reload: ReloadRoster) -> None:
        self._closing = asyncio.Event()
        metrics = Metrics(registry.overview)
        registry.listen(metrics.heard)
        chat = chat_completions(registry)
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/chat/completions", chat, methods=["POST"]),
                Route("/v1/completions", text_completions(registry), methods=["POST"]),
                Route("/v1/models", Models(registry), methods=["GET"]),
                Route("/v1/models/{id:path}", Model(registry), methods=["GET"]),
                Route("/health", Health(registry), methods=["GET"]),
                Route("/ready", Ready(registry), methods=["GET"]),
                Route("/metrics", Scrape(metrics), methods=["GET"]),
                admin(registry, reload, self._closing),
            ],
            middleware=[Middleware(Boundary)],
            exception_handlers={HTTPException: _unrouted},
        )
        app.router.redirect_slashes = False
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End the responses that have no end of their own: a shutdown would wait for them as for any other.

        Called on the event loop.
        """
        self._closing.set()


def create_app(registry: Registry, reload: ReloadRoster) -> Application:
    """The application. The registry is open before the first request and outlives the last one.

    `reload` reads the roster anew and applies it to the registry: what `POST /admin/reload` does.
    """
    return Application(registry, reload)


async def _unrouted(request: Request, error: Exception) -> NoReturn:
    """Starlette's router found no route, or not this method on it: say so in our own terms."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.scope['path'][:200]}"
    if error.status_code == 405:
        allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
        Exchange.of(request.scope).add_header("allow", ", ".join(allowed))
        raise MethodNotAllowed(f"{asked} is not possible; the method may be {' or '.join(allowed)}") from error
    if error.status_code == 404:
        raise RouteNotFound(f"there is no {asked}") from error
    raise error
