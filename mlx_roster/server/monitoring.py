"""What machines ask: `GET /health`, `/ready` and `/metrics`. None of them counts as use of a model."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster.metrics import Metrics
from mlx_roster.registry import Registry
from mlx_roster.server.callers import Caller
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.reply import reply


class Health:
    """`GET /health`: 200 as long as all is well.

    503 once the server is shutting down, and while a model's worker gets nowhere: `Registry.stalled`. That the event
    loop turns is said by there being an answer at all.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        summary = _summary(self._registry, Exchange.of(scope).caller)
        status = "stalled" if summary["stalled"] else "ok"
        if self._registry.closing:
            status = "draining"
        await reply({"status": status, **summary}, 200 if status == "ok" else 503)(scope, receive, send)


class Ready:
    """`GET /ready`: 200 once every preload has ended, well or badly; 503 until then, and while it shuts down."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = "ready" if self._registry.preloads.finished else "starting"
        if self._registry.closing:
            status = "draining"
        summary = _summary(self._registry, Exchange.of(scope).caller)
        await reply({"status": status, **summary}, 200 if status == "ready" else 503)(scope, receive, send)


class Scrape:
    """`GET /metrics`, in the format that the scraper asks for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = await self._metrics.rendered(Headers(scope=scope).get("accept", ""))
        await Response(body, headers={"content-type": content_type})(scope, receive, send)


def _summary(registry: Registry, caller: Caller) -> dict[str, Any]:
    """Anybody may ask, so it names no models; but to those who may operate the server."""
    preloads = registry.preloads
    named = {"failed": preloads.failed} if caller.operates else {}
    return {
        "residents": registry.status(),
        "stalled": len(registry.stalled()),
        "preload": {"done": preloads.done, "of": preloads.total, **named},
    }
