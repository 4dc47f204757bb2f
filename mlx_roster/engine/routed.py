"""The model as BatchGenerator sees it: takes the Rows off the prompt cache, and lets the layers know them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_roster.engine.rows import Rows

#: Tokens of a prompt that one step takes in: what a cancel or another stream waits for.
PREFILL_TOKENS = 512


class Routing:
    """The rows of the forward pass in hand: set by `Routed`, read by adapted layers and the sampler. One thread."""

    def __init__(self) -> None:
        self.rows = Rows([])
        #: (B, n) tokens that went in.
        self.inputs = mx.zeros((0, 1), dtype=mx.int32)
        #: (B, n, V) as the model has them; None once they have been sampled from.
        self.logits: mx.array | None = None
        self._chosen: mx.array | None = None
        self._sorted: mx.array | None = None

    def take(self) -> mx.array:
        """The raw logits (B, V) of the last tokens, once. Held on to, they would hold on to all they were made of."""
        assert self.logits is not None
        logits, self.logits = self.logits, None
        return logits[:, -1]

    def choose(self, experts: mx.array) -> None:
        """A router has chosen: (B, …) indices of experts, as its experts are about to get them."""
        self._chosen = experts
        self._sorted = None

    def picks(self, indices: mx.array, experts: int, is_sorted: bool) -> mx.array:
        """Of (slots, experts) flattened, the entries that the chosen experts and the rows' slots pick, as `indices`.

        `is_sorted`: mlx-lm has put the choice in the order of the experts, and flattened it.
        """
        if self.rows.single is not None:
            return indices + self.rows.single * experts
        assert self._chosen is not None
        # Whatever a model does to a batch, rows stay its outermost dimension.
        slots = mx.repeat(self.rows.slots, self._chosen.size // len(self.rows))
        if is_sorted:
            if self._sorted is None:
                self._sorted = slots[mx.argsort(self._chosen.flatten())]
            slots = self._sorted
        return slots.reshape(indices.shape) * experts + indices


class Routed:
    """A model to be called with caches whose last entry is a Rows."""

    def __init__(self, model: Module, routing: Routing) -> None:
        self.model = model
        self._routing = routing

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        self._routing.rows, self._routing.inputs, self._routing.logits = cache[-1], inputs, None
        logits: mx.array = self.model(inputs, cache=cache[:-1])
        if inputs.shape[1] == 1:
            # Of longer ones nobody samples: a prompt's logits are not even computed.
            self._routing.logits = logits
        return logits
