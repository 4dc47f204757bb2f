"""What a process that was started by another asks of the kernel: to end with it, and rather than it.

The end of file that both would see is not enough: a process that is stopped, or that never comes to read, sees none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

#: Of Linux's prctl: the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1

#: By so many thousandths of all memory this process counts as larger than it is when one must be killed for memory.
SACRIFICE = 500


def hold_on_to(parent: int) -> None:
    """From now on this process is killed when `parent`, which has started it, is gone; at once where it is already.

    To be called first of all. Does nothing where the kernel has no such thing: macOS.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before that: then nobody would tell.
    if os.getppid() != parent:
        os._exit(1)


def go_first() -> None:
    """From now on this process is killed before its parent is, where memory runs out: another may take its place.

    Does nothing where the kernel has no such thing, or does not let it.
    """
    if sys.platform != "linux":
        return
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        # What it has now is its parent's. To raise it needs no rights.
        score.write_text(str(min(1000, int(score.read_text()) + SACRIFICE)))
