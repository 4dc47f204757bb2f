"""Where a worker's matrix products come from on Linux CPUs."""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Mapping

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
    return {**environment, "LD_PRELOAD": os.pathsep.join(filter(None, [library, present]))}
