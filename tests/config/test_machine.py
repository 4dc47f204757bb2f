from __future__ import annotations

import sys

import psutil
import pytest

from mlx_roster.config import MemorySettings
from mlx_roster.config.machine import (
    budget_bytes,
    check_budget,
    metal_working_set,
    physical_memory,
    recommended_working_set,
)
from mlx_roster.errors import ConfigError

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


def test_a_budget_is_no_more_than_there_is() -> None:
    check_budget(16 * GIB, 16 * GIB)
    with pytest.raises(ConfigError, match=r"^memory\.budget: 48 GiB is more than the 16 GiB of memory that there are$"):
        check_budget(48 * GIB, 16 * GIB)
