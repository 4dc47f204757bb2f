"""Keeping a streaming response alive while there is nothing to stream yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mlx_roster.server.exchange import Exchange
from mlx_roster.server.sse import EventStream, comment

#: How long a stream may be silent before it says that it is still there, in seconds. Until then, whatever fails has a
#: status of its own; proxies hang up after a minute at the earliest.
PULSE = 10.0


@asynccontextmanager
async def kept_alive(
    events: EventStream, exchange: Exchange, words: Callable[[], str], pulse: float
) -> AsyncIterator[None]:
    """As long as the block runs: whenever nothing has been written for `pulse` seconds, a comment with `words`."""
    task = asyncio.create_task(_beat(events, exchange, words, pulse))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _beat(events: EventStream, exchange: Exchange, words: Callable[[], str], pulse: float) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not events.ended:
        left = max(begun, events.written) + pulse - loop.time()
        if left > 0:
            await asyncio.sleep(left)
        else:
            # From here on an error is an event.
            exchange.streaming = True
            await events.write(comment(words()))
