"""How a process that was started by another ends with it, in addition to the end of file that both would see.

A process that is stopped, or that never comes to read, sees no end of file: only the kernel can end that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: Of Linux's prctl: the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1


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
