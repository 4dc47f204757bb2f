"""Waiting for what tells nobody when it changes: how far a download is, what a worker is at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], look: Callable[[], None] = lambda: None) -> None:
    """Returns once `condition` holds. Meanwhile `look` is called, over and over."""
    while not condition():
        look()
        await asyncio.sleep(0.001)
