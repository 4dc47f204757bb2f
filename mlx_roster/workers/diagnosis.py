"""Why a worker could not start, made out from its last words, and what to do about it. For `serve` and `doctor`."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass

_EXTRAS = "pip install 'mlx-roster[cpu]', or [cuda12] or [cuda13] for an NVIDIA GPU"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """In a line each: what is wrong, and the next command."""

    what: str
    remedy: str


#: The first that is found in the last words is it.
_KNOWN = (
    (
        re.compile(r"incompatible architecture|have 'x86_64'|need 'arm64"),
        Diagnosis(
            "this Python is for Intel, mlx is for Apple silicon",
            "install an arm64 Python (file $(which python3) tells) and mlx-roster with it",
        ),
    ),
    (
        re.compile(r"libcuda\.so|CUDA driver version|no CUDA-capable device|cudaErrorNoDevice|cudaErrorInsufficient"),
        Diagnosis(
            "mlx's CUDA build finds no NVIDIA driver that it can use",
            "nvidia-smi shows the driver; without a GPU: pip uninstall mlx-cuda-12 mlx-cuda-13; "
            "pip install 'mlx-roster[cpu]'",
        ),
    ),
    (
        re.compile(r"lib(cublas|cudnn|nvrtc|nccl|cudart|cufft)\w*\.so"),
        Diagnosis(
            "libraries that mlx's CUDA build needs are not there",
            "pip install --force-reinstall 'mlx-roster[cuda13]', or [cuda12]",
        ),
    ),
    (
        re.compile(r"libmlx\.(so|dylib)"),
        Diagnosis("mlx is installed without a backend", _EXTRAS),
    ),
    (
        re.compile(r"No module named '(mlx|mlx_lm)\b"),
        Diagnosis(
            "mlx is not installed in this Python",
            "pip install mlx-roster on Apple silicon; on Linux " + _EXTRAS,
        ),
    ),
    (
        re.compile(r"No module named|cannot import name"),
        Diagnosis("a package that mlx-roster needs is missing or too old", "pip install --upgrade mlx-roster"),
    ),
    (
        re.compile(r"GLIBC(XX)?_[\d.]+' not found"),
        Diagnosis("mlx was built for a newer Linux than this", "use a newer distribution, or build mlx from source"),
    ),
    (
        # mlx-lm asks for so many when it is imported, and does not take no for an answer.
        re.compile(r"not allowed to raise maximum limit"),
        Diagnosis(
            "fewer than the 4096 open files may be had that mlx-lm asks for",
            "raise the hard limit (ulimit -Hn shows it), then start it again",
        ),
    ),
    (
        re.compile(r"Too many open files"),
        Diagnosis("the limit of open files is too low", "ulimit -n 8192, then start it again"),
    ),
    (
        re.compile(r"Cannot allocate memory|MemoryError|Resource temporarily unavailable"),
        Diagnosis(
            "the system has no memory, or no process, left for a worker", "mlx-roster doctor shows what takes it"
        ),
    ),
    (
        re.compile(r"Metal|MTLCreate"),
        Diagnosis(
            "mlx finds no Metal device",
            "macOS 14 or later on Apple silicon has one; some virtual machines and remote sessions have none",
        ),
    ),
)

_UNKNOWN = "mlx-roster doctor looks for the cause; mlx-roster serve --verbose shows all that the worker wrote"


def last_line(words: str) -> str:
    """The line of `words` that says most: the last, which is the error where they are a traceback."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def diagnosed(words: str, system: str = sys.platform, machine: str = platform.machine()) -> Diagnosis:
    """What the last `words` of a worker that could not start come to, on a machine of this kind."""
    if system == "darwin" and machine == "x86_64" and "mlx" in words:
        return _KNOWN[0][1]
    for pattern, found in _KNOWN:
        if pattern.search(words):
            return found
    return Diagnosis(last_line(words) or "it wrote nothing before it ended", _UNKNOWN)
