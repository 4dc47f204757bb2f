"""Where a worker's matrix products come from on Linux CPUs."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
from collections.abc import Mapping

#: Models of fewer bytes gain nothing from more than one thread: see docs/performance.md.
SMALL = 64 * 2**20

#: Set to "off" to keep the worker from preloading a system OpenBLAS.
SWITCH = "MLX_ROSTER_OPENBLAS"


def openblas() -> str | None:
    """The system's OpenBLAS by soname, where preloading it would help a worker."""
    return ctypes.util.find_library("openblas") if sys.platform == "linux" else None


def preloaded(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a worker, with the system's OpenBLAS preloaded where there is one.

    mlx's CPU wheel links the reference BLAS. Preloading OpenBLAS replaces its symbols and makes matmul several times
    faster; an LD_PRELOAD that is set already is kept.
    """
    library = openblas() if environment.get(SWITCH) != "off" else None
    present = environment.get("LD_PRELOAD", "")
    if library is None or "openblas" in present:
        return dict(environment)
    return {
        # Two to the power of so many cycles is how long an idle thread spins, and keeps a core from other workers.
        "OPENBLAS_THREAD_TIMEOUT": "8",
        **environment,
        "LD_PRELOAD": os.pathsep.join(filter(None, [library, present])),
    }


def limit_threads(weights: int) -> None:
    """In a worker that has loaded `weights` bytes: one thread for a small model, where OpenBLAS is preloaded.

    Its steps are many small products. More threads do not make them faster, and two such models side by side would
    wait for each other's threads all the time. OPENBLAS_NUM_THREADS in the environment has the last word.
    """
    if weights < SMALL and "OPENBLAS_NUM_THREADS" not in os.environ:
        with contextlib.suppress(AttributeError):  # it is not preloaded
            ctypes.CDLL(None).openblas_set_num_threads(1)
