"""What loaders hand to the engine: the only types that both know and that hold mlx arrays.

Every array in them has been evaluated, so that any thread may use it: mlx streams belong to one thread, and a lazy
array that left the thread it was made on cannot be computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_roster.core import AdapterSource


@dataclass(frozen=True, slots=True)
class Target:
    """A layer of a base model that an adapter may change.

    A `linear` layer takes `inputs` numbers to `outputs`; an `embedding` has a row of `outputs` numbers for each of
    `inputs` tokens; `experts` are so many linear layers, of which a router picks.
    """

    kind: Literal["linear", "embedding", "experts"]
    inputs: int
    outputs: int
    experts: int = 0


#: Module path → what an adapter may change there.
Targets = Mapping[str, Target]


@dataclass(frozen=True, slots=True)
class Draft:
    """A small model in memory that drafts `tokens` at a time for a large one, whose tokens mean the same to it.

    It knows token ids below `vocabulary`, and is of no use past `context`.
    """

    model: Module
    tokens: int
    context: int | None
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model in memory. Token ids must be below `vocabulary`; `context` is None where nothing limits it.

    `drafts` are by the names that requests have for them, in the roster's order; `generation` is what the model's own
    generation_config.json has for request fields, by their names.
    """

    model: Module
    tokenizer: Any
    config: dict[str, Any]
    context: int | None
    vocabulary: int
    drafts: Mapping[str, Draft] = field(default_factory=dict)
    generation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """What one adapter adds to one layer, in float32; `b` carries the scale. D are the layer's inputs, O its outputs.

    linear: a (D, r), b (r, O): `x @ a @ b` is added to the output. experts: a (E, D, r), b (E, r, O).
    embedding: a (D, r), b (r, O): the row of token v gets `a[v] @ b`.
    `magnitude` makes it DoRA: (O,) for a linear layer, (D,) for an embedding; what the norms of the changed weight's
    rows, one for each output or token, are brought to.
    """

    a: mx.array
    b: mx.array
    magnitude: mx.array | None = None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class AdapterWeights:
    """One adapter. `identity` is a hash of its files' contents: the same under two names, another for new files.

    `layers` has what each layer gets. `heads` is for embeddings only, and for where a model uses one the other way
    round, as its tied output layer: the pair is oriented as the embedding's, and may be the very object in `layers`.
    """

    name: str
    identity: str
    layers: Mapping[str, LoraPair]
    heads: Mapping[str, LoraPair]
    nbytes: int


class AdapterReader(Protocol):
    """Where the engine gets adapters from. `read` raises AdapterIncompatible."""

    def known(self, source: AdapterSource) -> str | None:
        """The identity of what lies at `source` now, if it has been read and not changed since. Reads nothing."""

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        """The tensors, each checked against `targets`. A refusal is remembered until files change, or for a while."""
