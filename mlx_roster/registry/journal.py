"""What has been decided, said once for all: a line of the log, and a Change for those who follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mlx_roster.logs import fields, written
from mlx_roster.registry.overview import Change, ModelStatus, Overview

logger = logging.getLogger(__name__)

#: Changes that a follower may be behind before it is given the whole state again instead.
FAR_BEHIND = 1000


class Follower:
    """Reads changes. Made by `Journal.follow`."""

    def __init__(self, overview: Callable[[], Overview], status: Callable[[str], ModelStatus | None]) -> None:
        self._overview = overview
        self._status = status
        self._changes: asyncio.Queue[Change] = asyncio.Queue(FAR_BEHIND)
        self._lost = True  # at first it has seen nothing

    def put(self, change: Change) -> None:
        try:
            self._changes.put_nowait(change)
        except asyncio.QueueFull:
            self._lost = True

    async def __aiter__(self) -> AsyncIterator[Overview | Change]:
        while True:
            if self._lost:
                # Whatever is in the queue is part of it already.
                self._lost = False
                while not self._changes.empty():
                    self._changes.get_nowait()
                yield self._overview()
            change = await self._changes.get()
            if not self._lost:
                # Not as it was when this was said: a decision is said before it is carried out.
                yield replace(change, status=self._status(change.model) if change.model is not None else None)


class Journal:
    """Where decisions go. `status` and `overview` look at the state as it is at the time."""

    def __init__(self, status: Callable[[str], ModelStatus | None], overview: Callable[[], Overview]) -> None:
        self._status = status
        self._overview = overview
        self._listeners: list[Callable[[Change], None]] = []
        self._followers: set[Follower] = set()

    def listen(self, listener: Callable[[Change], None]) -> None:
        self._listeners.append(listener)

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        follower = Follower(self._overview, self._status)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def say(self, kind: str, model: str | None, level: int = logging.INFO, **figures: Any) -> None:
        """One decision, with the figures behind it. Those that are None are left out."""
        known = {name: value for name, value in figures.items() if value is not None}
        if logger.isEnabledFor(level):
            about = fields(event=kind, model=model, **known)
            logger.log(level, "%s", line(kind, model, known), extra=about)
        change = Change(kind, model, known)
        for listener in self._listeners:
            try:
                listener(change)
            except Exception:
                # Who counts decisions must not be able to stop them from being carried out.
                logger.exception("a listener failed")
        for follower in self._followers:
            follower.put(change)


def line(kind: str, model: str | None, figures: dict[str, Any]) -> str:
    """`evict model=atlas serial=3 why="evicted for scribe"`."""
    named = {"model": model, **figures} if model is not None else figures
    return " ".join([kind, *(f"{name}={written(value)}" for name, value in named.items())])
