"""The bank: many LoRA adapters over one base, chosen per row of a batch.

Each targeted linear layer holds stacks A (S, D, r) and B (S, r, O) in float32, one entry per slot; slot 0 is zeros, for
rows without an adapter. A row's layer output gains `x @ A[slot] @ B[slot]`. Ranks are padded with zeros to the bank's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_roster.core import Sampling
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.tensors import AdapterWeights, LoraPair, Target, Targets


class LoraRows(Module):
    """A linear layer and its stacks. Sits in the model's tree where the layer was."""

    def __init__(self, linear: Module, routing: Routing, target: Target, slots: int, rank: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        inputs, outputs = target.inputs, target.outputs
        self.a = mx.zeros((slots, inputs, rank))
        self.b = mx.zeros((slots, rank, outputs))
        self._routing = routing

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear(x)
        rows = self._routing.rows
        if rows.plain:
            return y
        z = x.astype(mx.float32)
        if rows.single is not None:
            z = (z @ self.a[rows.single]) @ self.b[rows.single]
        else:
            # Whatever a model does to a batch, rows stay its outermost dimension.
            z = z.reshape(len(rows), -1, z.shape[-1])
            z = mx.gather_mm(z, self.a, rhs_indices=rows.slots)
            z = mx.gather_mm(z, self.b, rhs_indices=rows.slots).reshape(y.shape)
        return y + z.astype(y.dtype)

    def put(self, slot: int, pair: LoraPair | None) -> None:
        """Fill a slot, with zeros where the adapter leaves this layer alone."""
        a, b = mx.zeros(self.a.shape[1:]), mx.zeros(self.b.shape[1:])
        if pair is not None:
            rank = pair.a.shape[1]
            a[:, :rank] = pair.a
            b[:rank] = pair.b
        self.a[slot] = a
        self.b[slot] = b

    def grow(self, slots: int, rank: int) -> None:
        """Make room for more slots and higher ranks; what is there keeps its place."""
        more = slots - self.a.shape[0]
        wider = rank - self.a.shape[2]
        self.a = mx.pad(self.a, [(0, more), (0, 0), (0, wider)])
        self.b = mx.pad(self.b, [(0, more), (0, wider), (0, 0)])


class Bank:
    """All LoRA layers of one model. For the engine's thread, between steps.

    Knows slots, not who uses them: `scheduler.Slots` decides which adapter lies where.
    """

    def __init__(self, model: Module, routing: Routing) -> None:
        self._model: Any = model
        self._routing = routing
        self._layers: dict[str, LoraRows] = {}
        self._slots = 1
        self._rank = 1
        self.targets: Targets = dict(_targets(model))

    @property
    def nbytes(self) -> int:
        return sum(layer.a.nbytes + layer.b.nbytes for layer in self._layers.values())

    def put(self, slot: int, weights: AdapterWeights) -> None:
        """Place an adapter that fits (`loaders.adapters.fit`) into a slot, 1 or higher, that no running row uses.

        Evaluated when this returns. Raises AdapterIncompatible, and leaves the model as it was, where the model cannot
        run with one of its layers wrapped.
        """
        self._grow(slot, max(pair.a.shape[-1] for pair in weights.layers.values()))
        self._wrap(weights.layers.keys() - self._layers.keys())
        for path, layer in self._layers.items():
            layer.put(slot, weights.layers.get(path))
        mx.eval([[layer.a, layer.b] for layer in self._layers.values()])

    def _grow(self, slot: int, rank: int) -> None:
        if slot < self._slots and rank <= self._rank:
            return
        if slot >= self._slots:
            # Doubling: a bank is not as large as its limit until it has held that many adapters.
            self._slots = max(slot + 1, 2 * self._slots)
        self._rank = max(self._rank, rank)
        for layer in self._layers.values():
            layer.grow(self._slots, self._rank)

    def _wrap(self, paths: Iterable[str]) -> None:
        modules = dict(self._model.named_modules())
        fresh = {
            path: LoraRows(modules[path], self._routing, self.targets[path], self._slots, self._rank) for path in paths
        }
        if not fresh:
            return
        self._model.update_modules(tree_unflatten(list(fresh.items())))
        try:
            self._rehearse()
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self._model.update_modules(tree_unflatten([(path, layer.linear) for path, layer in fresh.items()]))
            raise AdapterIncompatible(
                "the model uses some of the adapter's layers in ways that LoRA cannot follow: "
                + ", ".join(sorted(fresh)),
                param="adapters",
            ) from error
        self._layers |= fresh

    def _rehearse(self) -> None:
        """Build, without computing it, a forward pass with and without an adapter: shapes and attributes must agree."""
        rows = Rows([Row(0, Sampling()), Row(self._slots - 1, Sampling())])
        Routed(self._model, self._routing)(mx.zeros((2, 3), dtype=mx.int32), [*make_prompt_cache(self._model), rows])


def _targets(model: Any) -> Iterable[tuple[str, Target]]:
    for path, module in model.named_modules():
        # Exact types: what a subclass computes, adding to its output may not extend.
        if type(module) is Linear:
            outputs, inputs = module.weight.shape
            yield path, Target("linear", inputs, outputs)
        elif type(module) is QuantizedLinear:
            outputs, groups = module.scales.shape
            yield path, Target("linear", groups * module.group_size, outputs)
