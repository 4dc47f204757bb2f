"""The files of an adapter's folder: which there are, whether they changed, and what is in them.

A file may come from anywhere, so nothing in it is believed before it is checked: what is no regular file is not opened
for reading, and none is read that is larger than what it could be good for.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.offences import named, refusal
from mlx_roster.loaders.sizes import MAX_HEADER
from mlx_roster.loaders.sizes import MLX_LM_ADAPTER as MLX_LM
from mlx_roster.loaders.sizes import PEFT_ADAPTER as PEFT

CONFIG = "adapter_config.json"
#: What PEFT wrote once. Unpickling runs whatever its author liked.
PICKLE = "adapter_model.bin"

#: Bytes of the largest CONFIG that is read: one with a pattern for each of a thousand modules has a tenth of it.
MAX_CONFIG = 4 * 2**20

#: Bytes of the largest file of tensors that is hashed: rank 256 on every layer of a 70B model takes less.
MAX_TENSORS = 16 * 2**30

Floats = npt.NDArray[np.float32]

#: What `os.stat` says of the files above, None for one that is not there. Where it is unchanged, so are they.
Signature = tuple[tuple[int, ...] | None, ...]

#: safetensors' names of what may be read as float32. numpy has no bfloat16: it is the upper half of a float32.
_READ: dict[str, Callable[[bytes], Floats]] = {
    "F32": lambda raw: np.frombuffer(raw, "<f4"),
    "F16": lambda raw: np.frombuffer(raw, "<f2").astype(np.float32),
    "BF16": lambda raw: (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

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


def identity(folder: str) -> str:
    """The content hash of the adapter in `folder`. Raises AdapterIncompatible where there is none to be read."""
    content = _content(folder, CONFIG, MAX_CONFIG)
    digest = _digest(content)
    name = _tensors_name(folder, _parsed(content))
    try:
        with _opened(folder, name, MAX_TENSORS) as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise refusal(f"its folder has no readable {name}") from error
    return digest.hexdigest()


def read(folder: str, most: int) -> Files:
    """Both files, where the tensors are no more than `most` bytes. Raises AdapterIncompatible."""
    content = _content(folder, CONFIG, MAX_CONFIG)
    config = _parsed(content)
    name = _tensors_name(folder, config)
    # The header comes on top.
    raw = _content(folder, name, min(most + MAX_HEADER, MAX_TENSORS))
    digest = _digest(content)
    digest.update(raw)
    return Files(digest.hexdigest(), config, _tensors(name, raw))


def _digest(config: bytes) -> hashlib._Hash:
    digest = hashlib.sha256(len(config).to_bytes(8, "big"))
    digest.update(config)
    return digest


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


def _tensors(name: str, content: bytes) -> dict[str, Tensor]:
    """Each tensor as safetensors has it, by name.

    Not through mx.load: over bytes in memory it waits for the GIL while an evaluation elsewhere waits for it.
    """
    try:
        found = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise refusal(f"{name} is cut short or damaged") from error
    if not found:
        raise refusal(f"{name} holds no tensors")
    tensors = {}
    for key, value in sorted(found, key=lambda item: str(item[0])):
        if key in tensors:
            raise refusal(f"{name} holds two tensors called {named(key)}")
        tensors[key] = Tensor(value["dtype"], tuple(value["shape"]), value["data"])
    return tensors
