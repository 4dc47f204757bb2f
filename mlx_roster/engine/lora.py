"""The bank: many LoRA adapters over one base, chosen per row of a batch. The layers themselves are in `layers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

from mlx_roster.core import Sampling
from mlx_roster.engine.layers import Adapted, AdaptedEmbedding, AdaptedExperts, AdaptedLinear, AdaptedSwitch
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.tensors import AdapterWeights, Target, Targets

_KINDS: dict[str, type[Adapted]] = {"linear": AdaptedLinear, "embedding": AdaptedEmbedding, "experts": AdaptedExperts}

#: What a model may raise that uses one of its layers in a way that a wrapped one does not allow.
_MISUSE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Bank:
    """All adapted layers of one model. For the engine's thread, between steps.

    Knows slots, not who uses them: `slots.Slots` decides which adapter lies where. `slots` is the most there will be.
    """

    def __init__(self, model: Any, routing: Routing, slots: int) -> None:
        self._model = model
        self._routing = routing
        self._most = slots + 1
        self._slots = 1
        self._layers: dict[str, Adapted] = {}
        self._switches: set[str] = set()
        self._modules: dict[str, Any] = dict(model.named_modules())
        self.targets: Targets = dict(_targets(self._modules))

    @property
    def nbytes(self) -> int:
        """Bytes of all stacks, padding and empty slots included."""
        return sum(layer.nbytes for layer in self._layers.values())

    def put(self, slot: int, weights: AdapterWeights) -> None:
        """Place an adapter that fits the targets into a slot, 1 or higher, that no running row uses.

        Evaluated when this returns. Raises AdapterIncompatible, and leaves the model as it was, where the model cannot
        run with one of its layers wrapped.
        """
        self._grow(slot)
        fresh = self._wrap((weights.layers.keys() | weights.heads.keys()) - self._layers.keys())
        try:
            for path, layer in self._layers.items():
                layer.put(slot, weights.layers.get(path), weights.heads.get(path))
            if fresh:
                self._rehearse(slot)
        except _MISUSE as error:
            self._unwrap(fresh)
            for layer in self._layers.values():
                layer.put(slot, None, None)
            raise AdapterIncompatible(
                "the model uses some of the adapter's layers in ways that LoRA cannot follow: "
                + ", ".join(sorted(fresh)),
                param="adapters",
            ) from error
        mx.eval([layer.stacks() for layer in self._layers.values()])

    def _grow(self, slot: int) -> None:
        if slot < self._slots:
            return
        # Doubling: a bank is not as large as its limit until it has held that many adapters.
        self._slots = max(slot + 1, min(2 * self._slots, self._most))
        for layer in self._layers.values():
            layer.grow(self._slots)

    def _wrap(self, paths: Iterable[str]) -> list[str]:
        fresh = sorted(paths)
        replaced: list[tuple[str, Module]] = []
        for path in fresh:
            target = self.targets[path]
            layer = _KINDS[target.kind](self._modules[path], target, self._routing, self._slots)
            self._layers[path] = layer
            replaced.append((self._place(path), layer))
        switches = {path.rpartition(".")[0] for path in fresh if self.targets[path].kind == "experts"}
        self._model.update_modules(tree_unflatten(replaced))
        added = switches - self._switches
        self._model.update_modules(
            tree_unflatten([(path, AdaptedSwitch(self._modules[path], self._routing)) for path in sorted(added)])
        )
        self._switches |= added
        return fresh

    def _unwrap(self, paths: Iterable[str]) -> None:
        """Give the model its own layers back. A switch stays wrapped: by itself it changes nothing."""
        for path in paths:
            del self._layers[path]
            self._model.update_modules(tree_unflatten([(self._place(path), self._modules[path])]))

    def _place(self, path: str) -> str:
        """Where a layer is now that the switch around it may be wrapped."""
        switch, _, name = path.rpartition(".")
        return f"{switch}.inner.{name}" if switch in self._switches else path

    def _rehearse(self, slot: int) -> None:
        """Build, without computing it, a step with one adapter and with several: shapes and attributes must agree."""
        for slots in ((0, slot), (slot, slot)):
            rows = Rows([Row(number, Sampling()) for number in slots])
            tokens = mx.zeros((2, 3), dtype=mx.int32)
            Routed(self._model, self._routing)(tokens, [*make_prompt_cache(self._model), rows])


def _targets(modules: dict[str, Any]) -> Iterator[tuple[str, Target]]:
    # Exact types: what a subclass computes, adding to its output may not extend.
    for path, module in modules.items():
        kind = type(module)
        if kind is Linear:
            outputs, inputs = module.weight.shape
            yield path, Target("linear", inputs, outputs)
        elif kind is QuantizedLinear:
            outputs, groups = module.scales.shape
            yield path, Target("linear", groups * module.group_size, outputs)
        elif kind is Embedding:
            yield path, Target("embedding", *module.weight.shape)
        elif kind is QuantizedEmbedding:
            tokens, groups = module.scales.shape
            yield path, Target("embedding", tokens, groups * module.group_size)
        elif kind in (SwitchLinear, QuantizedSwitchLinear) and _switched(modules, path):
            yield path, Target("experts", module.input_dims, module.output_dims, module.num_experts)


def _switched(modules: dict[str, Any], path: str) -> bool:
    """Whether the layer is called by a module that `AdaptedSwitch` understands."""
    return type(modules.get(path.rpartition(".")[0])) in (SwitchGLU, SwitchMLP)
