"""How many files, sockets included, this process may have open, and how many connections that leaves room for."""

from __future__ import annotations

import contextlib
import resource

#: More than this nobody needs, and some programs go through all that there could be.
ENOUGH = 65_536

#: macOS says that there is no limit, and then takes no more than this.
APPLE = 10_240

#: Kept for all but clients: workers, their pipes, files of models and of the roster.
RESERVE = 256


def raise_limit() -> int:
    """Take as many as the system lets this process have, up to ENOUGH. Workers inherit it. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (ENOUGH, APPLE):
        aim = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if soft == resource.RLIM_INFINITY or soft >= aim:
            break
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            break
    return open_files()


def open_files() -> int:
    """The limit as it is."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def room(limit: int) -> int:
    """How many clients' connections fit below `limit`. More of them must not keep a worker from being started."""
    return limit - min(RESERVE, limit // 2)
