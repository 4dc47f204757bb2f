"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster.registry import Listing, Registry
from mlx_roster.server.callers import resolved
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.reply import reply

#: Entries of a list that are written before the event loop turns: some milliseconds' worth.
AT_ONCE = 256

_encode = msgspec.json.Encoder().encode


class Models:
    """Every model and adapter of the catalog that is the caller's to use, loaded or not."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One by one: of tens of thousands of dicts alive at once, the garbage collector would want to see each.
        caller, listed = Exchange.of(scope).caller, list[bytes]()
        for listing in self._registry.listings(sees=caller.sees):
            if len(listed) % AT_ONCE == 0:
                await asyncio.sleep(0)
            listed.append(_encode(entry(listing)))
        payload = b'{"object":"list","data":[' + b",".join(listed) + b"]}"
        await Response(payload, media_type="application/json")(scope, receive, send)


class Model:
    """One of them, by id or alias."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ref = resolved(self._registry, Exchange.of(scope).caller, scope["path_params"]["id"])
        await reply(entry(self._registry.listed(ref)))(scope, receive, send)


def entry(listing: Listing) -> dict[str, Any]:
    """A model as OpenAI lists it, and what only a roster knows under `roster`.

    Whoever may see a model may see its aliases, and all its adapters: a key that opens only some of these does not open
    the model itself.
    """
    shown: dict[str, Any] = {
        "id": listing.id,
        "object": "model",
        "created": listing.created,
        "owned_by": "mlx-roster",
    }
    if listing.parent is not None:
        shown["parent"] = listing.parent
    shown["roster"] = {
        "state": listing.state,
        "aliases": listing.aliases,
        "adapters": listing.adapters,
        "bytes": {"estimated": listing.estimated, "measured": listing.measured},
        "in_flight": listing.in_flight,
        "queued": listing.queued,
        "pinned": listing.pinned,
        "max_context": listing.max_context,
    }
    return shown
