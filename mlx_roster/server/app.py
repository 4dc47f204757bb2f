"""The HTTP application: routes over a registry, inside one boundary."""

from __future__ import annotations

from typing import NoReturn

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_roster.config import ServerSettings
from mlx_roster.errors import MethodNotAllowed, RouteNotFound
from mlx_roster.registry import Registry
from mlx_roster.server.boundary import Boundary, Exchange
from mlx_roster.server.openai.chat import chat_completions
from mlx_roster.server.openai.completions import text_completions
from mlx_roster.server.openai.models import Model, Models


def create_app(registry: Registry, settings: ServerSettings) -> ASGIApp:
    """The ASGI application. The registry is open before the first request and outlives the last one."""
    chat = chat_completions(registry, settings)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text_completions(registry, settings), methods=["POST"]),
            Route("/v1/models", Models(registry), methods=["GET"]),
            Route("/v1/models/{id:path}", Model(registry), methods=["GET"]),
            Route("/health", Health(registry), methods=["GET"]),
        ],
        middleware=[Middleware(Boundary)],
        exception_handlers={HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False
    return app


class Health:
    """`GET /health`: the event loop turns and the registry answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        payload = {"status": "ok", "residents": self._registry.status()}
        await Response(msgspec.json.encode(payload), media_type="application/json")(scope, receive, send)


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
