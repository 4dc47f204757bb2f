"""Whether there are file descriptors enough to start a process."""

from __future__ import annotations

import os

#: What a worker takes of its parent while it starts, and a few more.
NEEDED = 16


def check_room() -> None:
    """Raises OSError where too few are left.

    uvloop must not find out by itself: what it has opened until then, it never closes.
    """
    taken: list[int] = []
    try:
        while len(taken) < NEEDED:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in taken:
            os.close(descriptor)
