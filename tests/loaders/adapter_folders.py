"""Adapter folders for tests, the targets of a model, and what a model computes with an adapter laid in by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_roster.core import AdapterSource
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.tensors import AdapterWeights, LoraPair, Target, Targets

LAYER = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
EXPERTS = "model.layers.0.mlp.switch_mlp.up_proj"

TARGETS: Targets = {
    LAYER: Target("linear", 8, 6),
    "model.layers.1.self_attn.q_proj": Target("linear", 8, 6),
    EMBEDDING: Target("embedding", 20, 8),
    EXPERTS: Target("experts", 8, 4, experts=3),
}

MLX_LM: dict[str, Any] = {
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 2, "scale": 4.0, "dropout": 0.0},
}
PEFT: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": None, "bias": "none"}


def write_mlxlm(folder: Path, content: Mapping[str, mx.array] | None = None, **config: Any) -> AdapterSource:
    """An adapter as mlx-lm saves it, by default on LAYER."""
    tensors = {f"{LAYER}.lora_a": mx.ones((8, 2)), f"{LAYER}.lora_b": mx.full((2, 6), 0.5)}
    return _write(folder, "adapters.safetensors", tensors if content is None else content, MLX_LM | config)


def write_peft(folder: Path, content: Mapping[str, mx.array] | None = None, **config: Any) -> AdapterSource:
    """An adapter as PEFT saves it, by default on LAYER; the names come without `base_model.model.`."""
    tensors = lora(LAYER) if content is None else content
    tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    return _write(folder, "adapter_model.safetensors", tensors, PEFT | config)


def lora(module: str, rank: int = 2, inputs: int = 8, outputs: int = 6) -> dict[str, mx.array]:
    """A pair as PEFT has it, of random numbers."""
    a, b = mx.random.normal((rank, inputs)), mx.random.normal((outputs, rank))
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def _write(folder: Path, file: str, tensors: Mapping[str, mx.array], config: Mapping[str, Any]) -> AdapterSource:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / file), dict(tensors))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return AdapterSource("mine", str(folder))


def refused(source: AdapterSource, targets: Targets = TARGETS) -> str:
    """The message with which an adapter is refused, after what holds for every one of them."""
    with pytest.raises(AdapterIncompatible) as error:
        Adapters().read(source, targets)
    assert error.value.param == "adapters"
    assert error.value.message.startswith(f"adapter {source.name!r}: ")
    assert source.path not in error.value.message
    assert "Error" not in error.value.message
    return error.value.message


def offenders(message: str) -> list[str]:
    """The tensors that a refusal lists."""
    return [line.strip().partition(": ")[0] for line in message.splitlines()[1:]]


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    """Whether two adapters change a model alike: the products, for a factor may lie on either side."""
    return _same(one.layers, other.layers) and _same(one.heads, other.heads)


def _same(one: Mapping[str, LoraPair], other: Mapping[str, LoraPair]) -> bool:
    return one.keys() == other.keys() and all(
        mx.allclose(one[path].a @ one[path].b, other[path].a @ other[path].b, atol=1e-6)
        and (one[path].magnitude is None) == (other[path].magnitude is None)
        and (one[path].magnitude is None or mx.array_equal(one[path].magnitude, other[path].magnitude))
        for path in one
    )


def targets_of(model: nn.Module) -> Targets:
    """What an adapter may change in a model that is not quantized."""
    return dict(_targets(model))


def _targets(model: nn.Module) -> Any:
    for path, module in model.named_modules():
        if isinstance(module, SwitchLinear):
            yield path, Target("experts", module.input_dims, module.output_dims, module.num_experts)
        elif isinstance(module, nn.Linear):
            yield path, Target("linear", module.weight.shape[1], module.weight.shape[0])
        elif isinstance(module, nn.Embedding):
            yield path, Target("embedding", *module.weight.shape)


class _Split(nn.Module):
    """An embedding whose rows are not those of the head that is tied to it."""

    def __init__(self, rows: mx.array, head: mx.array) -> None:
        super().__init__()
        self.rows = rows
        self.head = head

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.rows[tokens]

    def as_linear(self, x: mx.array) -> mx.array:
        return x @ self.head.T


def lay_in(model: nn.Module, weights: AdapterWeights) -> None:
    """Change the weights of a model as LoraPair says they are changed."""
    modules = dict(model.named_modules())
    for path in weights.layers.keys() | weights.heads.keys():
        module = modules[path]
        if isinstance(module, nn.Embedding):
            rows = _changed(module.weight, weights.layers.get(path), tokens=True)
            head = _changed(module.weight, weights.heads.get(path), tokens=True)
            model.update_modules(tree_unflatten([(path, _Split(rows, head))]))
        else:
            module.weight = _changed(module.weight, weights.layers[path], tokens=False)


def _changed(weight: mx.array, pair: LoraPair | None, *, tokens: bool) -> mx.array:
    if pair is None:
        return weight
    product = pair.a @ pair.b
    changed = weight + (product if tokens else mx.swapaxes(product, -1, -2))
    if pair.magnitude is None:
        return changed
    return changed * (pair.magnitude / mx.linalg.norm(changed, axis=1))[:, None]
