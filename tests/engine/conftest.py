"""Models and adapters for the engine's tests, written once a session."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.sharing import WIDE
from tests.engine.tiny import Driven


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's models and adapters lie."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def model(shelf: Path) -> Path:
    """A random llama."""
    return tiny.write_model(shelf / "llama")


@pytest.fixture(scope="session")
def wide(shelf: Path) -> Path:
    """One whose keys and values outweigh all else: see `sharing`."""
    return tiny.write_model(shelf / "wide", **WIDE)


@pytest.fixture(scope="session")
def alone(wide: Path) -> Any:
    """`wide` as mlx-lm by itself has it."""
    return tiny.alone(wide)


@pytest.fixture(scope="session")
def adapters(shelf: Path, model: Path) -> list[Path]:
    """Sixteen adapters over `model`, of different ranks, scales and layers."""
    keys = (None, ["self_attn.q_proj"], ["mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"])
    return [
        tiny.write_adapter(
            shelf / f"adapter{index}",
            model,
            seed=index,
            rank=(2, 4, 8)[index % 3],
            scale=(1.0, 2.5)[index % 2],
            keys=keys[index % 3],
            layers=1 + index % 2,
        )
        for index in range(16)
    ]


@pytest.fixture
def swept(alone: Any) -> None:
    """For tests that measure memory: nothing earlier ones have left is freed in the middle, nor `alone` loaded."""
    gc.collect()


@pytest.fixture
def engine(model: Path) -> Iterator[Driven]:
    with tiny.driven(model, max_adapters=16) as engine:
        yield engine


@pytest.fixture
def roomy(wide: Path) -> Iterator[Driven]:
    """An engine of `wide` that keeps nothing of what has ended."""
    with tiny.driven(wide, prompt_cache_entries=0) as engine:
        yield engine
