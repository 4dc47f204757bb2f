from __future__ import annotations

import sys

import psutil
import pytest

from mlx_roster.config import MemorySettings
from mlx_roster.config.machine import budget_bytes, metal_working_set, physical_memory, recommended_working_set

GIB = 2**30


def test_this_machine() -> None:
    assert physical_memory() == psutil.virtual_memory().total
    assert physical_memory() // 2 <= recommended_working_set() <= physical_memory()


@pytest.mark.skipif(sys.platform == "darwin", reason="Metal recommends less than all of the memory")
def test_without_metal_it_is_all_of_the_memory() -> None:
    assert recommended_working_set() == physical_memory()


@pytest.mark.parametrize(
    ("memory", "wired_limit_mb", "working_set"),
    [
        (24 * GIB, 0, 16 * GIB),
        (36 * GIB, 0, 27 * GIB),
        (64 * GIB, 0, 48 * GIB),
        (64 * GIB, 57344, 56 * GIB),
        (16 * GIB, 57344, 16 * GIB),
    ],
)
def test_what_metal_recommends(memory: int, wired_limit_mb: int, working_set: int) -> None:
    assert metal_working_set(memory, wired_limit_mb) == working_set


@pytest.mark.parametrize(("budget", "expected"), [("75%", 18 * GIB), ("100%", 24 * GIB), ("48GiB", 48 * GIB)])
def test_budget(budget: str, expected: int) -> None:
    memory = MemorySettings.model_validate({"budget": budget})
    assert budget_bytes(memory, 24 * GIB) == expected
