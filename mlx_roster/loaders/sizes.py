"""How many bytes a model or an adapter takes, read from safetensors headers. No tensor is read and mlx not needed.

A file may come from anywhere, so a header is believed in nothing: it is read only where the file is as long as it
claims, and its tensors must lie within the file. What does not hold raises LoadFailed, naming the file but no folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from mlx_roster.config import ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders import kv

#: The safetensors format's own limit.
MAX_HEADER = 100 * 10**6

INDEX = "model.safetensors.index.json"

#: As mlx-lm and PEFT name an adapter's tensors. Other files in its folder are checkpoints of its training.
MLX_LM_ADAPTER = "adapters.safetensors"
PEFT_ADAPTER = "adapter_model.safetensors"

_HALVES = frozenset({"F16", "BF16"})

#: A tensor of an adapter as mlx-lm names it (`PATH.lora_a`, `.m`) or PEFT (`base_model.model.PATH.lora_A.weight`).
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<path>.+)\."
    r"(?:lora_(?:embedding_)?(?P<side>[ABab])|m|lora_magnitude_vector)(?:\.default)?(?:\.weight)?",
    re.DOTALL,
)

_WRAPPING = re.compile(r"\A(?:(?:model|language_model)\.)+")

#: Names longer than this are not remembered: a file may make them as long as it likes.
_LONG = 256

#: What mlx-lm's stacks of experts are called where they are not `experts`, and Mixtral's names of their layers.
_STACK = "switch_mlp"
_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

#: Keys of a model's config for the number of its experts, the most that is believed, and bytes of a config.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MOST_EXPERTS = 10_000
_MAX_CONFIG = 4 * 2**20


class _Tensor(msgspec.Struct, gc=False):
    data_offsets: tuple[int, int] | None = None
    dtype: str = ""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


# mlx writes `"__metadata__": null` where there is none.
_decode_header = msgspec.json.Decoder(dict[str, _Tensor | None]).decode
_decode_index = msgspec.json.Decoder(_Index).decode


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model is expected to take, in bytes. `bank` is as large as its adapters can make it.

    `kv` is reserved for the caches of running sequences. `weights` and `kv` have what its draft models take.
    """

    weights: int
    bank: int
    headroom: float
    kv: int = 0

    @property
    def total(self) -> int:
        return round((self.weights + self.bank) * (1 + self.headroom)) + self.kv


@dataclass(frozen=True, slots=True)
class Sides:
    """What one adapter brings to each side of each layer, in bytes of float32; named alike for both formats.

    `whole` is what it has of layers as the base has them. `experts` is what it has expert by expert, while the bank has
    stacks of all of the base's: the largest expert's bytes, and the highest expert's number.
    """

    whole: dict[str, int]
    experts: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's tensors. `width` is what one number takes that it computes with: 2, or 4 for float32."""

    size: int
    width: int


def weights(folder: Path) -> Weights:
    """The tensors of the model in `folder`. Raises LoadFailed."""
    whole = halves = size = 0
    for shard in shards(folder):
        for tensor in _tensors(shard).values():
            length = _length(tensor)
            size += length
            # Of a quantized model only the scales tell.
            whole += length if tensor.dtype == "F32" else 0
            halves += length if tensor.dtype in _HALVES else 0
    return Weights(size, 4 if whole > halves else 2)


def weights_bytes(folder: Path) -> int:
    """Bytes of the tensors of the model in `folder`."""
    return weights(folder).size


def adapter_sides(folder: Path) -> Sides:
    """What the adapter in `folder` would have a bank hold: the larger of each, where both formats are there.

    Tensors that are no LoRA's count for nothing: an adapter that has them is refused.
    """
    files = [folder / name for name in (MLX_LM_ADAPTER, PEFT_ADAPTER) if (folder / name).is_file()]
    if not files:
        missing = f"there is no {MLX_LM_ADAPTER} and no {PEFT_ADAPTER}"
        raise LoadFailed(missing if folder.is_dir() else "its folder does not exist")
    sides = Sides({}, {})
    for file in files:
        for name, tensor in _tensors(file).items():
            found = _side(name) if len(name) > _LONG else _known_side(name)
            if found is None:
                continue
            key, expert = found
            # Not by the shape, which may be any: a type that is neither half nor float32 is refused.
            size = _length(tensor) * (2 if tensor.dtype in _HALVES else 1)
            if expert is None:
                sides.whole[key] = max(size, sides.whole.get(key, 0))
            else:
                largest, highest = sides.experts.get(key, (0, 0))
                sides.experts[key] = max(size, largest), max(expert, highest)
    return sides


def _side(name: str) -> tuple[str, int | None] | None:
    """A tensor's layer and side, and of which expert it is, if of one. None for what is no LoRA's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    # mlx-lm and Hugging Face wrap the language model differently.
    parts = _WRAPPING.sub("", match["path"]).split(".")
    expert = None
    if len(parts) > 2 and parts[-3] == "experts" and re.fullmatch("[0-9]{1,4}", parts[-2]):
        expert = int(parts.pop(-2))
        parts[-1] = _PROJECTIONS.get(parts[-1], parts[-1])
    elif len(parts) > 1 and parts[-2] == _STACK:
        parts[-2] = "experts"
    return ".".join((*parts, (match["side"] or "m").lower())), expert


# The adapters of one base share their names.
_known_side = lru_cache(2**14)(_side)


def estimate(folder: Path, entry: ModelEntry, headroom: float, drafts: Collection[Path] = ()) -> Estimate:
    """What the model in `folder`, which is `entry`'s, will take, with those that draft for it. Raises LoadFailed.

    An adapter that cannot be read takes nothing: it will never be loaded, and it must not keep its base from loading.
    """
    sides = []
    for adapter in entry.adapters.values():
        try:
            sides.append(adapter_sides(adapter.source))
        except LoadFailed:
            continue
    return estimate_with(folder, entry, headroom, sides, drafts)


def estimate_with(
    folder: Path, entry: ModelEntry, headroom: float, adapters: Collection[Sides], drafts: Collection[Path] = ()
) -> Estimate:
    """The same, for adapters that have been looked at already."""
    base, config = weights(folder), read_config(folder)
    bank = bank_bytes(adapters, entry.max_adapters, expert_count(config))
    reserve = reserve_of(entry, base, config)
    sizes = [weights(draft) for draft in drafts]
    # Only a sequence that is alone is drafted for, by one of them.
    drafting = [_drafting(draft, entry, found.width) for draft, found in zip(drafts, sizes, strict=True)]
    total = base.size + sum(found.size for found in sizes)
    return Estimate(total, bank, headroom, reserve + max(drafting, default=0))


def reserve_of(entry: ModelEntry, base: Weights, config: dict[str, Any]) -> int:
    """Bytes to reserve for the KV caches of the sequences of a model with these weights and this config."""
    lengths = [length for length in (entry.max_context, kv.context(config)) if length is not None]
    quantized = kv.Quantized(entry.kv.bits, entry.kv.group_size) if entry.kv.bits is not None else None
    size = kv.cache_size(config, base.width, quantized)
    return kv.reserve(size, base.size, min(lengths, default=None), entry.max_concurrency)


def _drafting(folder: Path, entry: ModelEntry, width: int) -> int:
    """Bytes to reserve for the caches of the draft model in `folder`."""
    config = read_config(folder)
    lengths = [length for length in (entry.max_context, kv.context(config)) if length is not None]
    return kv.reserve(kv.cache_size(config, width), 0, min(lengths, default=None), 1)


def bank_bytes(adapters: Collection[Sides], max_adapters: int, experts: int | None) -> int:
    """What a bank takes that holds as many of these adapters as it can, over a base with so many experts.

    All of its slots have every layer that any adapter changes, at the largest rank that one of them has there. Where
    the number of experts is not known, it is one more than the highest that an adapter names.
    """
    if experts is None:
        highest = (highest for adapter in adapters for _, highest in adapter.experts.values())
        experts = max(highest, default=0) + 1
    largest: dict[str, int] = {}
    for adapter in adapters:
        for key, size in adapter.whole.items():
            if size > largest.get(key, 0):
                largest[key] = size
        for key, (size, number) in adapter.experts.items():
            # One for an expert that the base does not have is refused.
            if number < experts:
                largest[key] = max(largest.get(key, 0), size * experts)
    return _slots(len(adapters), max_adapters) * sum(largest.values())


def _slots(adapters: int, most: int) -> int:
    """How many slots a bank has made once it holds as many of these adapters as it can: see engine/lora.py."""
    held = min(adapters, most)
    slots = 1 if held else 0
    while 0 < slots <= held:
        # One slot is for sequences without.
        slots = min(2 * slots, most + 1)
    return slots


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in `folder`, empty where there is none that could be read."""
    try:
        with (folder / "config.json").open("rb") as stream:
            config: Any = json.loads(stream.read(_MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def expert_count(config: dict[str, Any]) -> int | None:
    """How many experts each layer of a model has, None where its config does not say."""
    # That of a model that also sees or hears keeps what is about its language model apart.
    parts = [config, config.get("text_config")]
    counts = [part.get(key) for part in parts if isinstance(part, dict) for key in _EXPERTS]
    return next((count for count in counts if type(count) is int and 0 < count <= _MOST_EXPERTS), None)


def shards(folder: Path) -> list[Path]:
    """The files that hold the weights, all of them there. Raises LoadFailed.

    Without an index these are `model*.safetensors`: mlx-lm loads no others.
    """
    index = folder / INDEX
    names = _indexed(index) if index.is_file() else {path.name for path in folder.glob("model*.safetensors")}
    if not names:
        raise LoadFailed("there is no model*.safetensors")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise LoadFailed(f"{len(missing)} of {len(names)} weight files are missing, {missing[0]} among them")
    return [folder / name for name in sorted(names)]


def _indexed(index: Path) -> set[str]:
    try:
        if index.stat().st_size > MAX_HEADER:
            raise LoadFailed(f"{INDEX} is too large to be an index")
        names = set(_decode_index(index.read_bytes()).weight_map.values())
    except OSError as error:
        raise LoadFailed(f"{INDEX} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{INDEX} is not a valid index") from error
    # The files lie beside the index; a name that leads elsewhere would have us open any file of the host.
    if any("/" in name or "\0" in name or name in ("", ".", "..") for name in names):
        raise LoadFailed(f"{INDEX} names a file outside the model's folder")
    return names


def _length(tensor: _Tensor) -> int:
    assert tensor.data_offsets is not None  # `_checked` has seen to that
    return tensor.data_offsets[1] - tensor.data_offsets[0]


def _tensors(file: Path) -> dict[str, _Tensor]:
    """The tensors of a safetensors file by name. Raises LoadFailed."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise LoadFailed(f"{file.name} is cut short or no safetensors file")
            if length > MAX_HEADER:
                raise LoadFailed(f"{file.name} has a header of {length} bytes; {MAX_HEADER} is the most there may be")
            header = stream.read(length)
    except OSError as error:
        raise LoadFailed(f"{file.name} cannot be read: {error.strerror}") from error
    return _checked(header, size - 8 - length, file.name)


def _checked(header: bytes, payload: int, name: str) -> dict[str, _Tensor]:
    """The tensors that `header` lists, each within the `payload` bytes that follow it. Raises LoadFailed."""
    try:
        listed = _decode_header(header)
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{name} has a header that cannot be read") from error
    listed.pop("__metadata__", None)
    tensors: dict[str, _Tensor] = {}
    taken = 0
    for key, tensor in listed.items():
        if tensor is None or tensor.data_offsets is None:
            raise LoadFailed(f"{name} has a tensor without data_offsets")
        begin, end = tensor.data_offsets
        if not 0 <= begin <= end:
            raise LoadFailed(f"{name} has a tensor with impossible data_offsets")
        if end > payload:
            raise LoadFailed(f"{name} is cut short: it has {payload} bytes of tensors and a tensor that ends at {end}")
        taken += end - begin
        tensors[key] = tensor
    if taken > payload:
        raise LoadFailed(f"{name} has tensors that overlap")
    return tensors
