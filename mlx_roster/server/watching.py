"""`GET /admin/events`: the whole state, then every change, as server-sent events for as long as somebody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Coroutine
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster.registry import Registry
from mlx_roster.registry.overview import Change, Overview
from mlx_roster.server.disconnect import cancel_on_disconnect
from mlx_roster.server.discreet import discreet
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.sse import COMMENT, EventStream, event

#: How often a connection on which nothing happens says that it is still there, in seconds.
PULSE = 15.0


class Events:
    """An ASGI endpoint. Its responses end when `closing` is set, or with their client."""

    def __init__(self, registry: Registry, closing: asyncio.Event, pulse: float = PULSE) -> None:
        self._registry = registry
        self._closing = closing
        self._pulse = pulse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await Response(media_type="text/event-stream")(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        client = cancel_on_disconnect(receive)
        try:
            async with client, self._registry.changes() as changes:
                exchange.streaming = exchange.endless = True
                events = EventStream(send)
                await _first(self._relay(changes, events), self._beat(events), self._closing.wait())
                await events.end()
        finally:
            exchange.client_gone = client.gone

    async def _relay(self, changes: AsyncIterable[Overview | Change], events: EventStream) -> None:
        async for item in changes:
            base = self._registry.roster.base
            if isinstance(item, Overview):
                said = event(msgspec.json.encode(discreet(item, base)), b"state")
            else:
                said = event(msgspec.json.encode(discreet(item, base)), b"change")
            await events.write(said)

    async def _beat(self, events: EventStream) -> None:
        while True:
            await asyncio.sleep(self._pulse)
            await events.write(COMMENT)


async def _first(*jobs: Coroutine[Any, Any, object]) -> None:
    """Run `jobs` until one of them ends, and cancel the others. Raises its error, if it ended with one."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
