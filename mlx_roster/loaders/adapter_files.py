"""The files of an adapter's folder: which there are, whether they changed, and what is in them.

A file may come from anywhere, so nothing in it is believed before it is checked: what is no regular file is not opened
for reading, and none is read that is larger than what it could be good for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.offences import refusal
from mlx_roster.loaders.sizes import MAX_HEADER
from mlx_roster.loaders.sizes import MLX_LM_ADAPTER as MLX_LM
from mlx_roster.loaders.sizes import PEFT_ADAPTER as PEFT

CONFIG = "adapter_config.json"
#: What PEFT wrote once. Unpickling runs whatever its author liked.
PICKLE = "adapter_model.bin"

#: Bytes of the largest CONFIG that is read: one with a pattern for each of a thousand modules has a tenth of it.
MAX_CONFIG = 4 * 2**20

Floats = npt.NDArray[np.float32]

#: What `os.stat` says of the files above, None for one that is not there. Where it is unchanged, so are they.
Signature = tuple[tuple[int, ...] | None, ...]

#: safetensors' names of what may be read as float32. numpy has no bfloat16: it is the upper half of a float32.
_READ: dict[str, Callable[[memoryview], Floats]] = {
    "F32": lambda raw: np.frombuffer(raw, "<f4"),
    "F16": lambda raw: np.frombuffer(raw, "<f2").astype(np.float32),
    "BF16": lambda raw: (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32),
}


#: Bytes of one number of each type that safetensors has, to check that a header does not lie.
_WIDTHS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
_WIDTHS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
_WIDTHS |= dict.fromkeys(("U32", "I32", "F32"), 4)
_WIDTHS |= dict.fromkeys(("U64", "I64", "F64", "C64"), 8)


class _Header(msgspec.Struct):
    """What a safetensors header says of one tensor. The offsets count from the header's end."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


_decode_headers = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_header = msgspec.json.Decoder(_Header).decode


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview

    @property
    def readable(self) -> bool:
        """Whether this is of a type that fits into a float32."""
        return self.dtype in _READ

    def floats(self) -> Floats:
        """The values in float32, the one type that mlx gathers on every backend (mlx-lm's own, too)."""
        return _READ[self.dtype](self.content).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Files:
    """An adapter's files, read once: the identity is that of exactly the bytes that are then used."""

    identity: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def peft(self) -> bool:
        """Whether PEFT wrote them, and not mlx-lm."""
        return _is_peft(self.config)


def signature(folder: str) -> Signature:
    """The present state of the files in `folder`, for comparing. Reads none of them."""
    return tuple(_state(folder, name) for name in (CONFIG, MLX_LM, PEFT, PICKLE))


def read(folder: str, most: int, count: int) -> Files:
    """Both files, where the tensors are no more than `most` bytes and `count`. Raises AdapterIncompatible."""
    if not os.path.isdir(folder):
        raise refusal("its folder does not exist")
    content = _content(folder, CONFIG, MAX_CONFIG)
    config = _parsed(content)
    name = _tensors_name(folder, config)
    # The header is decoded in one go, and nothing else runs meanwhile. There is room for what is of another base.
    header = min(MAX_HEADER, 2**22 + 1024 * count)
    raw = _content(folder, name, 8 + header + most)
    digest = hashlib.sha256(len(content).to_bytes(8, "big"))
    digest.update(content)
    digest.update(raw)
    return Files(digest.hexdigest(), config, _tensors(name, raw, header))


def _is_peft(config: dict[str, Any]) -> bool:
    return "peft_type" in config


def _state(folder: str, name: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(Path(folder) / name)
    except (OSError, ValueError):
        return None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def _opened(folder: str, name: str, most: int) -> BinaryIO:
    # Opening a pipe would wait for a writer; NONBLOCK does not.
    descriptor = os.open(Path(folder) / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(found.st_mode):
        problem = "is no regular file"
    elif found.st_size > most:
        problem = f"has {found.st_size} bytes; {most} can be served"
    if problem is not None:
        os.close(descriptor)
        raise refusal(f"its {name} {problem}")
    return os.fdopen(descriptor, "rb")


def _content(folder: str, name: str, most: int) -> bytes:
    try:
        with _opened(folder, name, most) as stream:
            content = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise refusal(f"its folder has no readable {name}") from error
    if len(content) > most:
        raise refusal(f"its {name} grew while it was read")
    return content


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{CONFIG} is not valid JSON") from error
    if not isinstance(config, dict):
        raise refusal(f"{CONFIG} is not a JSON object")
    return config


def _tensors_name(folder: str, config: dict[str, Any]) -> str:
    """The file with the tensors, which is there. The config decides where there are both formats'."""
    there = {name for name in (MLX_LM, PEFT, PICKLE) if _state(folder, name) is not None}
    wanted, other = (PEFT, MLX_LM) if _is_peft(config) else (MLX_LM, PEFT)
    if wanted in there:
        return wanted
    if wanted == PEFT and PICKLE in there:
        raise _pickled()
    if other in there:
        kind = "has a peft_type" if wanted == PEFT else "has no peft_type"
        raise refusal(f"its {CONFIG} {kind}, but its folder has {other} and no readable {wanted}")
    raise refusal(f"its folder has no readable {wanted}")


def _pickled() -> AdapterIncompatible:
    return refusal(f"its tensors are pickled in {PICKLE}, which is never read; save them as {PEFT}")


def _tensors(name: str, content: bytes, most: int) -> dict[str, Tensor]:
    """Each tensor by name, its bytes where they are in `content`.

    Not through mx.load, which waits for the GIL while an evaluation elsewhere waits for it, nor through safetensors,
    which copies all tensors before it lets another thread run: 0.15 s for an adapter of 100 MB, and the streams stall.
    """
    try:
        tensors = _cut(content, most)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{name} is cut short or damaged") from error
    if not tensors:
        raise refusal(f"{name} holds no tensors")
    return tensors


def _cut(content: bytes, most: int) -> dict[str, Tensor]:
    """The tensors that the header lists, in the order of their names. Raises ValueError unless they fill the file.

    A header of more than `most` bytes is not looked into: AdapterIncompatible.
    """
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if most < length <= len(content):
        raise refusal(f"its tensors have a header of {length} bytes, which is too much for any adapter of this model")
    headers = _decode_headers(content[8:start])
    headers.pop("__metadata__", None)
    tensors = {key: _decode_header(header) for key, header in headers.items()}
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.data_offsets):
        # As safetensors demands: no gap, no overlap, and each as long as its type and shape make it.
        if tensor.data_offsets != (end, end + math.prod(tensor.shape) * _WIDTHS.get(tensor.dtype, 0)):
            raise ValueError("a tensor that is not where it should be")
        end = tensor.data_offsets[1]
    if start + end != len(content):
        raise ValueError("more bytes than tensors")
    body = memoryview(content)[start:]
    return {
        key: Tensor(tensor.dtype, tensor.shape, body[slice(*tensor.data_offsets)])
        for key, tensor in sorted(tensors.items())
    }
