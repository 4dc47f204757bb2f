"""The model as BatchGenerator sees it: takes the Rows off the prompt cache, and lets the layers know them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_roster.engine.rows import Rows


class Routing:
    """The rows of the forward pass in hand: set by `Routed`, read by LoRA layers and the sampler. One thread."""

    def __init__(self) -> None:
        self.rows = Rows([])


class Routed:
    """A model to be called with caches whose last entry is a Rows."""

    def __init__(self, model: Module, routing: Routing) -> None:
        self.model = model
        self._routing = routing

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        self._routing.rows = cache[-1]
        logits: mx.array = self.model(inputs, cache=cache[:-1])
        return logits
