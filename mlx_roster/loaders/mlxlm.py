"""mlx-lm's adapters: `lora_a` and `lora_b` beside the base's own module paths, and `m` for DoRA."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_roster.loaders import lora_pairs
from mlx_roster.loaders.adapter_files import CONFIG, Files, Floats, Tensor
from mlx_roster.loaders.offences import Offences, refusal, shown
from mlx_roster.tensors import AdapterWeights, LoraPair, Target, Targets

_KINDS = ("lora", "dora")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What `adapter_config.json` says of every layer. `rank` is None where it is left to the tensors."""

    scale: float
    rank: int | None
    dora: bool
    keys: frozenset[str] | None

    def covers(self, path: str) -> bool:
        """Whether mlx-lm would put an adapter on the module: keys are whole paths, or paths within a block."""
        if self.keys is None:
            return True
        # `model.layers.3.mlp.up_proj` is `mlp.up_proj` within its block.
        within = (path[found.end() :] for found in re.finditer(r"\.\d+\.", path))
        return path in self.keys or any(rest in self.keys for rest in within)


def read(name: str, files: Files, targets: Targets) -> AdapterWeights:
    """The adapter in `files`, for a base with these targets. Raises AdapterIncompatible."""
    settings = _settings(files.config)
    offences = Offences()
    layers = {}
    for path, sides in _by_layer(files.tensors, offences).items():
        target = targets.get(path)
        problem = _problem(path, sides, target, settings)
        if problem is not None or target is None:
            for side in sides:
                offences.add(f"{path}.{side}", f"shape {sides[side].shape}, {problem}")
        elif (pair := _pair(path, sides, target, settings, offences)) is not None:
            layers[path] = pair
    offences.check()
    # mlx-lm's LoRAEmbedding changes what a tied head computes, too.
    heads = {path: pair for path, pair in layers.items() if targets[path].kind == "embedding"}
    return lora_pairs.weights(name, files.identity, layers, heads)


def _settings(config: dict[str, Any]) -> _Settings:
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise refusal(f"its fine_tune_type is {shown(kind)}; 'lora' and 'dora' can be served")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        parameters = {}
    scale = parameters.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not _finite(scale):
        raise refusal(f"{CONFIG} has no number at lora_parameters.scale")
    rank = parameters.get("rank")
    if isinstance(rank, bool) or not isinstance(rank, int | None):
        raise refusal(f"its lora_parameters.rank is {shown(rank)}, which is no number of columns")
    if rank is not None:
        lora_pairs.rank(rank, "lora_parameters.rank")
    return _Settings(float(scale), rank, kind == "dora", _keys(parameters.get("keys")))


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


def _keys(found: object) -> frozenset[str] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise refusal(f"its lora_parameters.keys is {shown(found)}, which is no list of module names")
    return frozenset(found)


def _by_layer(tensors: Mapping[str, Tensor], offences: Offences) -> dict[str, dict[str, Tensor]]:
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        path, _, side = name.rpartition(".")
        if side in ("lora_a", "lora_b", "m") and path:
            layers[path][side] = tensor
        else:
            offences.add(name, f"shape {tensor.shape}, not a LoRA tensor")
    return layers


def _problem(path: str, sides: Mapping[str, Tensor], target: Target | None, settings: _Settings) -> str | None:
    """What is wrong with all tensors of a layer, if something is."""
    if target is None:
        return "the model has no layer of that name that an adapter can change"
    if not settings.covers(path):
        return "but lora_parameters.keys does not name the layer"
    if target.kind == "experts" and (settings.dora or "m" in sides):
        return "DoRA on the experts of a mixture, which cannot be served"
    missing = {"lora_a", "lora_b"} | ({"m"} if settings.dora else set())
    missing -= sides.keys()
    if missing:
        return f"has no counterpart {' or '.join(sorted(missing))}"
    if "m" in sides and not settings.dora:
        return "with a DoRA magnitude m, but its fine_tune_type is not 'dora'"
    return None


def _pair(
    path: str, sides: Mapping[str, Tensor], target: Target, settings: _Settings, offences: Offences
) -> LoraPair | None:
    experts = target.kind == "experts"
    rank = settings.rank
    if rank is None and len(sides["lora_a"].shape) >= 2:
        # Where this is none that can be served, both are said to be wrong.
        rank = next((size for size in sides["lora_a"].shape[1:2] if 1 <= size <= lora_pairs.MAX_RANK), None)
    # mlx-lm keeps those of experts the other way round.
    shapes: dict[str, tuple[int | None, ...]] = {
        "lora_a": (target.experts, rank, target.inputs) if experts else (target.inputs, rank),
        "lora_b": (target.experts, target.outputs, rank) if experts else (rank, target.outputs),
        "m": (target.inputs if target.kind == "embedding" else target.outputs,),
    }
    found: dict[str, Floats | None] = {}
    for side, tensor in sides.items():
        values = lora_pairs.floats(f"{path}.{side}", tensor, shapes[side], offences)
        if values is not None and side == "lora_b":
            values = lora_pairs.scaled(f"{path}.{side}", values, settings.scale, offences)
        if values is not None and experts:
            values = np.swapaxes(values, 1, 2)
        found[side] = values
    if found["lora_a"] is None or found["lora_b"] is None or any(values is None for values in found.values()):
        return None
    return lora_pairs.pair(found["lora_a"], found["lora_b"], found.get("m"))
