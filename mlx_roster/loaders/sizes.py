"""How many bytes a model or an adapter takes, read from safetensors headers. No tensor is read and mlx not needed.

A file may come from anywhere, so a header is believed in nothing: it is read only where the file is as long as it
claims, and its tensors must lie within the file. What does not hold raises LoadFailed, naming the file but no folder.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import msgspec

from mlx_roster.errors import LoadFailed

#: The safetensors format's own limit.
MAX_HEADER = 100 * 10**6

INDEX = "model.safetensors.index.json"

#: As mlx-lm and PEFT name an adapter's tensors. Other files in its folder are checkpoints of its training.
MLX_LM_ADAPTER = "adapters.safetensors"
PEFT_ADAPTER = "adapter_model.safetensors"


_HALVES = frozenset({"F16", "BF16"})


class _Tensor(msgspec.Struct, gc=False):
    data_offsets: tuple[int, int] | None = None
    dtype: str = ""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


# mlx writes `"__metadata__": null` where there is none.
_decode_header = msgspec.json.Decoder(dict[str, _Tensor | None]).decode
_decode_index = msgspec.json.Decoder(_Index).decode


def weights_bytes(folder: Path) -> int:
    """Bytes of the tensors of the model in `folder`."""
    return sum(map(tensor_bytes, shards(folder)))


def adapter_bytes(folder: Path) -> int:
    """Bytes of the adapter in `folder` once it is in memory, in float32: the larger, where both formats are there."""
    files = [folder / name for name in (MLX_LM_ADAPTER, PEFT_ADAPTER) if (folder / name).is_file()]
    if not files:
        missing = f"there is no {MLX_LM_ADAPTER} and no {PEFT_ADAPTER}"
        raise LoadFailed(missing if folder.is_dir() else "its folder does not exist")
    return max(tensor_bytes(file, widened=True) for file in files)


def estimate(folder: Path, adapters: Sequence[Path], max_adapters: int, headroom: float) -> int:
    """What a model will take once loaded: its weights, its bank full of adapters, and headroom.

    An adapter that cannot be read takes nothing: it will never be loaded, and it must not keep its base from loading.
    """
    sizes = []
    for adapter in adapters:
        try:
            sizes.append(adapter_bytes(adapter))
        except LoadFailed:
            continue
    return total(weights_bytes(folder), sizes, max_adapters, headroom)


def total(weights: int, adapters: Iterable[int], max_adapters: int, headroom: float) -> int:
    """The sum behind `estimate`, from sizes that are known already."""
    return round((weights + bank_bytes(adapters, max_adapters)) * (1 + headroom))


def bank_bytes(adapters: Iterable[int], max_adapters: int) -> int:
    """What a bank takes that holds as many of these adapters as it can: all slots are as large as the largest adapter
    needs, and there is one more, for sequences without."""
    sizes = list(adapters)
    return (min(len(sizes), max_adapters) + 1) * max(sizes) if sizes else 0


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


def tensor_bytes(file: Path, *, widened: bool = False) -> int:
    """Bytes of the tensors in a safetensors file, or, `widened`, of all of them in float32. Raises LoadFailed."""
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
    return _sum(header, size - 8 - length, file.name, _HALVES if widened else frozenset())


def _sum(header: bytes, payload: int, name: str, doubled: Container[str]) -> int:
    """The tensors that `header` lists, checked against the `payload` bytes that follow it; some types count twice."""
    try:
        tensors = _decode_header(header)
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"{name} has a header that cannot be read") from error
    tensors.pop("__metadata__", None)
    taken = extra = 0
    for tensor in tensors.values():
        if tensor is None or tensor.data_offsets is None:
            raise LoadFailed(f"{name} has a tensor without data_offsets")
        begin, end = tensor.data_offsets
        if not 0 <= begin <= end:
            raise LoadFailed(f"{name} has a tensor with impossible data_offsets")
        if end > payload:
            raise LoadFailed(f"{name} is cut short: it has {payload} bytes of tensors and a tensor that ends at {end}")
        taken += end - begin
        extra += end - begin if tensor.dtype in doubled else 0
    if taken > payload:
        raise LoadFailed(f"{name} has tensors that overlap")
    return taken + extra
