"""Noticing that a file has changed, by looking at it now and then: that works on any file system."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

#: How often a file is looked at, in seconds.
INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What changes when a file is written, replaced, or reached through a symlink that now leads elsewhere."""

    device: int
    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Identity | None:
        """That of the file at `path`, symlinks followed; None where there is none, or none to be seen. Blocks."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


class Settling:
    """Tells a change from what was seen at each look. Pure: who uses it does the looking.

    A change counts once two looks in a row have seen the same, so that a file is not read while it is being written. A
    file that is not there has not changed; one that is back counts if it is another.
    """

    def __init__(self, known: Identity | None) -> None:
        self.there = known is not None
        self._known = known
        self._last = known

    def look(self, found: Identity | None) -> bool:
        """Whether what was `found` now makes a change complete."""
        settled = found is not None and found == self._last and found != self._known
        if settled:
            self._known = found
        self._last = found
        self.there = found is not None
        return settled


async def changes(path: Path, known: Identity | None, interval: float = INTERVAL) -> AsyncGenerator[None, None]:
    """Yields each time the file at `path` has become another than before; at first, than the `known` one."""
    settling = Settling(known)
    while True:
        await asyncio.sleep(interval)
        was_there = settling.there
        # On a thread: a network disk may take its time.
        changed = settling.look(await asyncio.to_thread(Identity.of, path))
        if was_there and not settling.there:
            logger.warning("%s is gone or cannot be read; it is looked for every %g s", path, interval)
        if changed:
            yield
