"""What machines ask: `GET /health`, `/ready` and `/metrics`. None of them counts as use of a model."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster.metrics import Metrics
from mlx_roster.registry import Registry
from mlx_roster.server.reply import reply


class Health:
    """`GET /health`: the event loop turns and the registry answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply({"status": "ok", **_summary(self._registry)})(scope, receive, send)


class Ready:
    """`GET /ready`: 200 once every preload has ended, well or badly; 503 until then."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        finished = self._registry.preloads.finished
        status = {"status": "ready" if finished else "starting", **_summary(self._registry)}
        await reply(status, 200 if finished else 503)(scope, receive, send)


class Scrape:
    """`GET /metrics`, in the format that the scraper asks for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = self._metrics.render(Headers(scope=scope).get("accept", ""))
        await Response(body, headers={"content-type": content_type})(scope, receive, send)


def _summary(registry: Registry) -> dict[str, Any]:
    preloads = registry.preloads
    return {
        "residents": registry.status(),
        "preload": {"done": preloads.done, "of": preloads.total, "failed": preloads.failed},
    }
