"""PEFT's LoRA adapters: their tensors carry the Hugging Face model's module paths, here found among the base's.

The base's paths differ in what wraps the language model, and where experts are stacked into one layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mlx_roster.loaders import lora_pairs
from mlx_roster.loaders.adapter_files import Files, Floats, Tensor
from mlx_roster.loaders.offences import Offences, named
from mlx_roster.loaders.peft_config import PeftConfig
from mlx_roster.tensors import AdapterWeights, LoraPair, Target, Targets

#: `base_model.model.`, the module, the part, and how much of the adapter's name and its parameter is there.
_NAME = re.compile(
    r"base_model\.model\.(?P<path>.+)\.(?:"
    r"(?P<matrix>lora_[AB])(?:\.default)?\.weight"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)",
    re.DOTALL,
)

_EXPERT = re.compile(r"(?P<block>.+)\.experts\.(?P<expert>\d{1,6})\.(?P<projection>[^.]+)", re.DOTALL)

#: Where mlx-lm keeps stacked experts, and what it calls their layers. Mixtral's names have numbers.
_STACKS = ("switch_mlp", "experts")
_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

#: What the embedding of tokens is called, for models that have others.
_EMBEDDINGS = ("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embeddings", "embedding")

_SAVED = "a weight of the base model or of its vocabulary; save the adapter with save_embedding_layers=False"


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer of the base, for a module of Hugging Face's: all of it, one of its experts, or its use as a tied head."""

    path: str
    target: Target
    use: Literal["layer", "head"] = "layer"
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class _Module:
    """The tensors of one module, by part; `names` are what the file calls them."""

    path: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Matrices:
    """PEFT's A (r, inputs) and B (outputs, r) of one module, the scale not yet in."""

    a: Floats
    b: Floats
    magnitude: Floats | None


def read(name: str, files: Files, targets: Targets) -> AdapterWeights:
    """The adapter in `files`, for a base with these targets. Raises AdapterIncompatible."""
    config = PeftConfig(files.config)
    offences = Offences()
    layers: dict[str, LoraPair] = {}
    heads: dict[str, LoraPair] = {}
    experts: defaultdict[str, dict[int, tuple[Floats, Floats]]] = defaultdict(dict)
    for place, module in _placed(_modules(files.tensors, offences), _Paths(targets), config, offences):
        rank = config.rank(module.path)
        found = _matrices(module, place, rank, offences)
        if found is None:
            continue
        first, last, carrier = (found.b, found.a, "A") if place.use == "head" else (found.a.T, found.b.T, "B")
        last_scaled = lora_pairs.scaled(_named_part(module, carrier), last, config.scale(module.path, rank), offences)
        if last_scaled is None:
            continue
        if place.expert is not None:
            experts[place.path][place.expert] = (first, last_scaled)
        else:
            pairs = heads if place.use == "head" else layers
            pairs[place.path] = lora_pairs.pair(first, last_scaled, found.magnitude)
    offences.check()
    for path, stack in experts.items():
        layers[path] = _stacked(targets[path], stack)
    return lora_pairs.weights(name, files.identity, layers, heads)


class _Paths:
    """Finds Hugging Face's modules among the base's layers."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._cores: defaultdict[str, list[str]] = defaultdict(list)
        for path in targets:
            self._cores[_core(path)].append(path)

    def place(self, path: str) -> _Place | None:
        """The layer that the module is, None if the base has none."""
        found = self._layer(path)
        if found is not None:
            return _Place(found, self._targets[found])
        return self._expert(path) or self._head(path)

    def _layer(self, path: str) -> str | None:
        if path in self._targets:
            return path
        found = self._cores.get(_core(path), [])
        return found[0] if len(found) == 1 else None

    def _expert(self, path: str) -> _Place | None:
        match = _EXPERT.fullmatch(path)
        if match is None:
            return None
        projection = _PROJECTIONS.get(match["projection"], match["projection"])
        for stack in _STACKS:
            found = self._layer(f"{match['block']}.{stack}.{projection}")
            if found is not None and int(match["expert"]) < self._targets[found].experts:
                return _Place(found, self._targets[found], expert=int(match["expert"]))
        return None

    def _head(self, path: str) -> _Place | None:
        """The embedding that serves as the head, where the base has no head of its own."""
        if _core(path) != "lm_head":
            return None
        found = [path for path, target in self._targets.items() if target.kind == "embedding"]
        if len(found) > 1:
            found = [path for path in found if path.rpartition(".")[2] in _EMBEDDINGS]
        return _Place(found[0], self._targets[found[0]], "head") if len(found) == 1 else None


def _core(path: str) -> str:
    """The path without what wraps the language model: mlx-lm and Hugging Face nest that differently."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in ("model", "language_model"):
        del parts[0]
    return ".".join(parts)


def _modules(tensors: Mapping[str, Tensor], offences: Offences) -> list[_Module]:
    modules: dict[str, _Module] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            offences.add(name, f"shape {tensor.shape}, {_unknown(name)}")
            continue
        module = modules.setdefault(match["path"], _Module(match["path"]))
        part = match["matrix"] or match["embedding"] or match["magnitude"]
        if part in module.tensors:
            offences.add(name, f"shape {tensor.shape}, is there twice, as {named(module.names[part])} too")
            continue
        module.tensors[part] = tensor
        module.names[part] = name
    return list(modules.values())


def _unknown(name: str) -> str:
    if name.endswith("lora_B.bias"):
        return "a trained bias, which cannot be served"
    if name.endswith((".base_layer.weight", "embed_tokens.weight", "lm_head.weight")):
        return _SAVED
    return "not a tensor of a LoRA on a layer"


def _placed(
    modules: list[_Module], paths: _Paths, config: PeftConfig, offences: Offences
) -> Iterator[tuple[_Place, _Module]]:
    """Each module that may have its adapter, with its place. The others' tensors are offences, every one of them."""
    taken: dict[_Place, str] = {}
    for module in modules:
        place = paths.place(module.path)
        problem = _problem(module, place, config)
        if problem is None and place is not None and place in taken:
            problem = f"for the same layer as the tensors of {named(taken[place])}"
        if problem is not None or place is None:
            for part, tensor in module.tensors.items():
                offences.add(module.names[part], f"shape {tensor.shape}, {problem}")
            continue
        taken[place] = module.path
        yield place, module


def _problem(module: _Module, place: _Place | None, config: PeftConfig) -> str | None:
    """What is wrong with all tensors of a module, if something is."""
    if place is None:
        return "the model has no layer for it that an adapter can change"
    embedding = place.target.kind == "embedding" and place.use == "layer"
    if place.target.kind == "experts" and place.expert is None:
        return "for all experts at once, but there is a layer for each"
    uncovered = config.uncovered(module.path, linear=not embedding)
    if uncovered is not None:
        return uncovered
    wanted = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
    there = module.tensors.keys() - {"lora_magnitude_vector"}
    if there - wanted:
        return f"for {'an embedding' if not embedding else 'a linear layer'}, which this module is not"
    if wanted - there:
        return f"has no counterpart {' or '.join(sorted(wanted - there))}"
    return _magnitude_problem(module, place, config, embedding=embedding)


def _magnitude_problem(module: _Module, place: _Place, config: PeftConfig, *, embedding: bool) -> str | None:
    if config.dora and embedding:
        return "DoRA on an embedding, which PEFT computes in another way than mlx-lm and which cannot be served"
    if config.dora and place.expert is not None:
        return "DoRA on the experts of a mixture, which cannot be served"
    if config.dora != ("lora_magnitude_vector" in module.tensors):
        return "has no lora_magnitude_vector" if config.dora else "with a lora_magnitude_vector, but without use_dora"
    return None


def _named_part(module: _Module, side: str) -> str:
    return next(name for part, name in module.names.items() if part.endswith(f"_{side}"))


def _matrices(module: _Module, place: _Place, rank: int, offences: Offences) -> _Matrices | None:
    target = place.target
    inputs, outputs = target.inputs, target.outputs
    if place.use == "head":
        inputs, outputs = outputs, inputs
    shapes: dict[str, tuple[int, ...]] = {"A": (rank, inputs), "B": (outputs, rank), "vector": (outputs,)}
    found: dict[str, Floats] = {}
    for part, tensor in module.tensors.items():
        side = part.rpartition("_")[2]
        values = lora_pairs.floats(module.names[part], tensor, shapes[side], offences)
        if values is not None:
            found[side] = values
    if len(found) < len(module.tensors):
        return None
    return _Matrices(found["A"], found["B"], found.get("vector"))


def _stacked(target: Target, experts: Mapping[int, tuple[Floats, Floats]]) -> LoraPair:
    """The experts' pairs in one, padded to the largest rank. An expert without one gets zeros, which add nothing."""
    rank = max(b.shape[0] for _, b in experts.values())
    a = np.zeros((target.experts, target.inputs, rank), np.float32)
    b = np.zeros((target.experts, rank, target.outputs), np.float32)
    for expert, (first, last) in experts.items():
        a[expert, :, : first.shape[1]] = first
        b[expert, : last.shape[0]] = last
    return lora_pairs.pair(a, b)
