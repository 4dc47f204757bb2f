"""How much memory this machine has for models, told without mlx: the server process and `check` need it too."""

from __future__ import annotations

import subprocess
import sys

import psutil

from mlx_roster.config.settings import MemorySettings
from mlx_roster.config.units import Share, format_bytes
from mlx_roster.errors import ConfigError

_MIB = 2**20
_GIB = 2**30


def physical_memory() -> int:
    """Bytes of RAM."""
    return psutil.virtual_memory().total


def recommended_working_set() -> int:
    """What models may take together at most without hurting the rest, in bytes.

    On a Mac this is close to what Metal recommends; a worker's Device says exactly. Elsewhere it is all of the memory.
    """
    if sys.platform == "darwin":
        return metal_working_set(physical_memory(), _wired_limit_mb())
    return physical_memory()


def metal_working_set(memory: int, wired_limit_mb: int) -> int:
    """Metal's recommendation for a Mac with `memory` bytes; `wired_limit_mb` is iogpu.wired_limit_mb, 0 for its own."""
    if wired_limit_mb > 0:
        return min(wired_limit_mb * _MIB, memory)
    return memory * 3 // 4 if memory >= 36 * _GIB else memory * 2 // 3


def _wired_limit_mb() -> int:
    """0 where the sysctl does not exist (before macOS 14) or says nothing."""
    asked = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, timeout=5, check=False
    )
    text = asked.stdout.strip()
    return int(text) if text.isdecimal() else 0


def budget_bytes(memory: MemorySettings, working_set: int) -> int:
    """What all models together may take, on a device that recommends `working_set` bytes."""
    return memory.budget.of(working_set) if isinstance(memory.budget, Share) else memory.budget


def check_budget(budget: int, memory: int) -> None:
    """Raises ConfigError for a `budget` that is more than the `memory` there is."""
    if budget > memory:
        raise ConfigError(
            f"memory.budget: {format_bytes(budget)} is more than the {format_bytes(memory)} of memory that there are"
        )
