"""What loaders hand to the engine: the only types that both know and that hold mlx arrays.

Every array in them has been evaluated, so that any thread may use it: mlx streams belong to one thread, and a lazy
array that left the thread it was made on cannot be computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_roster.core import AdapterSource

#: The linear layers of a base model that an adapter may change: module path → (input size, output size).
Targets = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model in memory. Token ids must be below `vocabulary`; `context` is None where nothing limits it."""

    model: Module
    tokenizer: Any
    config: dict[str, Any]
    context: int | None
    vocabulary: int


@dataclass(frozen=True, slots=True)
class LoraPair:
    """`x @ a @ b` is added to a layer's output: a is (D, r), b is (r, O) and carries the scale; both float32."""

    a: mx.array
    b: mx.array


@dataclass(frozen=True, slots=True, weakref_slot=True)
class AdapterWeights:
    """One adapter. `identity` is a hash of its files' contents: the same under two names, another for new files."""

    name: str
    identity: str
    layers: Mapping[str, LoraPair]
    rank: int
    nbytes: int


class AdapterReader(Protocol):
    """Where the engine gets adapters from. Both methods raise AdapterIncompatible."""

    def identity(self, source: AdapterSource) -> str:
        """The identity of what lies at `source` now. Cheap while the files do not change."""

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        """The tensors, every one checked against `targets`."""
