"""Adapters from disk: mlx-lm's folders (`adapter_config.json` and `adapters.safetensors`) of plain LoRA.

Everything else that may lie in an adapter folder is recognised and refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from mlx_roster.core import AdapterSource
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.tensors import AdapterWeights, LoraPair, Targets

CONFIG = "adapter_config.json"
TENSORS = "adapters.safetensors"

_Matrix = npt.NDArray[np.float32]

#: safetensors' names of what may be read as float32. numpy has no bfloat16: it is the upper half of a float32.
_READ: dict[str, Callable[[bytes], _Matrix]] = {
    "F32": lambda raw: np.frombuffer(raw, np.float32),
    "F16": lambda raw: np.frombuffer(raw, np.float16).astype(np.float32),
    "BF16": lambda raw: (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32),
}

#: What `os.stat` says of both files: where it is unchanged, so is the identity.
_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Files:
    """Both files, read once: the identity is that of exactly the bytes that are then used."""

    config: bytes
    tensors: bytes

    @property
    def identity(self) -> str:
        digest = hashlib.sha256(len(self.config).to_bytes(8, "big"))
        digest.update(self.config)
        digest.update(self.tensors)
        return digest.hexdigest()


class Adapters:
    """The engine's AdapterReader, remembering identities by what `stat` says of the files. For one thread."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Signature, str]] = {}

    def identity(self, source: AdapterSource) -> str:
        """The content hash of what lies at `source` now; reads the files only where they changed."""
        signature = _signature(source)
        known = self._known.get(source.path)
        if known is not None and known[0] == signature:
            return known[1]
        identity = _files(source).identity
        self._known[source.path] = (signature, identity)
        return identity

    def read(self, source: AdapterSource, targets: Targets) -> AdapterWeights:
        """Read, evaluate and check an adapter. Raises AdapterIncompatible."""
        weights = read(source)
        fit(weights, targets)
        return weights


def read(source: AdapterSource) -> AdapterWeights:
    """The tensors of an adapter folder. May be called while another thread computes, and what it returns used on any.

    Raises AdapterIncompatible saying what was found instead, or naming every tensor that makes no LoRA pair.
    """
    files = _files(source)
    config = _config(source, files.config)
    scale = _scale(source, config)
    layers = _pairs(source, _tensors(source, files.tensors), scale)
    return AdapterWeights(
        name=source.name,
        identity=files.identity,
        layers=layers,
        heads={},
        nbytes=sum(pair.a.nbytes + pair.b.nbytes for pair in layers.values()),
    )


def fit(weights: AdapterWeights, targets: Targets) -> None:
    """Raise AdapterIncompatible listing every tensor that the base model has no place for."""
    wrong = []
    for path, pair in weights.layers.items():
        if path not in targets:
            wrong.append(f"{path}.lora_a, {path}.lora_b: the model has no linear layer of that name")
            continue
        inputs, outputs = targets[path].inputs, targets[path].outputs
        if pair.a.shape[0] != inputs:
            wrong.append(f"{path}.lora_a: shape {tuple(pair.a.shape)}, but the layer takes {inputs} inputs")
        if pair.b.shape[1] != outputs:
            wrong.append(f"{path}.lora_b: shape {tuple(pair.b.shape)}, but the layer has {outputs} outputs")
    if wrong:
        raise _incompatible(weights.name, "does not fit this model", wrong)


def _incompatible(name: str, problem: str, tensors: list[str]) -> AdapterIncompatible:
    return AdapterIncompatible("\n  ".join([f"adapter {name!r} {problem}:", *tensors]), param="adapters")


def _refuse(source: AdapterSource, reason: str) -> AdapterIncompatible:
    return AdapterIncompatible(f"adapter {source.name!r}: {reason}", param="adapters")


def _signature(source: AdapterSource) -> _Signature:
    stats = []
    for name in (CONFIG, TENSORS):
        try:
            found = os.stat(Path(source.path) / name)
        except (OSError, ValueError) as error:
            raise _missing(source, name) from error
        stats.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(stats)


def _files(source: AdapterSource) -> _Files:
    contents = []
    for name in (CONFIG, TENSORS):
        try:
            contents.append((Path(source.path) / name).read_bytes())
        except (OSError, ValueError) as error:
            raise _missing(source, name) from error
    return _Files(*contents)


def _missing(source: AdapterSource, name: str) -> AdapterIncompatible:
    if (Path(source.path) / "adapter_model.safetensors").exists():
        return _refuse(source, "this is a PEFT adapter; only LoRA adapters saved by mlx-lm can be served")
    return _refuse(source, f"its folder has no readable {name}")


def _config(source: AdapterSource, content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise _refuse(source, f"{CONFIG} is not valid JSON") from error
    if not isinstance(config, dict):
        raise _refuse(source, f"{CONFIG} is not a JSON object")
    if "peft_type" in config:
        raise _refuse(source, "this is a PEFT adapter; only LoRA adapters saved by mlx-lm can be served")
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise _refuse(source, f"its fine_tune_type is {kind!r}; only 'lora' can be served")
    return config


def _scale(source: AdapterSource, config: dict[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise _refuse(source, f"{CONFIG} has no number at lora_parameters.scale")
    return float(scale)


def _tensors(source: AdapterSource, content: bytes) -> dict[str, dict[str, Any]]:
    """Each tensor's dtype, shape and data as safetensors has them.

    Not through mx.load: over bytes in memory it waits for the GIL while an evaluation elsewhere waits for it.
    """
    try:
        tensors = dict(deserialize(content))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _refuse(source, f"{TENSORS} is cut short or damaged") from error
    if not tensors:
        raise _refuse(source, f"{TENSORS} holds no tensors")
    return tensors


def _matrix(tensor: dict[str, Any]) -> _Matrix | None:
    """A tensor in float32, the one type that mlx gathers on every backend (mlx-lm's own, too); None if no matrix."""
    read = _READ.get(tensor["dtype"])
    if read is None or len(tensor["shape"]) != 2:
        return None
    return read(tensor["data"]).reshape(tensor["shape"])


def _pairs(source: AdapterSource, tensors: dict[str, dict[str, Any]], scale: float) -> dict[str, LoraPair]:
    """Pair lora_a with lora_b, and fold the scale into the latter."""
    sides: defaultdict[str, dict[str, _Matrix]] = defaultdict(dict)
    wrong = []
    for name, tensor in tensors.items():
        path, _, side = name.rpartition(".")
        matrix = _matrix(tensor)
        if side not in ("lora_a", "lora_b") or not path:
            wrong.append(f"{name}: not a LoRA tensor")
        elif matrix is None:
            wrong.append(
                f"{name}: {tensor['dtype']} of shape {tuple(tensor['shape'])}, but a matrix of floats is needed"
            )
        else:
            sides[path][side] = matrix
    pairs = {}
    for path, found in sides.items():
        if len(found) == 1:
            wrong.append(f"{path}.{next(iter(found))}: has no counterpart")
        elif len(found) == 2:
            a, b = found["lora_a"], found["lora_b"]
            if a.shape[1] != b.shape[0] or a.shape[1] == 0:
                wrong.append(f"{path}.lora_a, {path}.lora_b: shapes {a.shape} and {b.shape} do not chain")
            # Made from memory, not computed: there is nothing left to evaluate, so they are not bound to this thread.
            pairs[path] = LoraPair(mx.array(a), mx.array(b * np.float32(scale)))
    if wrong:
        raise _incompatible(source.name, "holds tensors that cannot be used", wrong)
    return pairs
