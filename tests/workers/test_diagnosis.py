from __future__ import annotations

import pytest

from mlx_roster.workers.diagnosis import diagnosed, last_line


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        ("ImportError: libmlx.so: cannot open shared object file", "without a backend", "mlx-roster[cpu]"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "no NVIDIA driver", "nvidia-smi"),
        ("ImportError: libcublasLt.so.12: cannot open shared object file", "libraries", "cuda13"),
        ("ModuleNotFoundError: No module named 'mlx'", "mlx is not installed", "mlx-roster[cpu]"),
        ("ModuleNotFoundError: No module named 'mlx_lm'", "mlx is not installed", "mlx-roster[cpu]"),
        ("ModuleNotFoundError: No module named 'regex'", "a package", "pip install --upgrade"),
        ("ImportError: dlopen(x): mach-o file, but is an incompatible architecture", "Intel", "arm64"),
        ("version `GLIBC_2.38' not found", "newer Linux", "distribution"),
        ("no worker process could be started: Too many open files", "open files", "ulimit -n"),
        ("ValueError: not allowed to raise maximum limit", "4096", "ulimit -Hn"),
        ("no worker process could be started: Cannot allocate memory", "memory", "doctor"),
        ("RuntimeError: [metal::load_device] No Metal device", "Metal", "macOS 14"),
        ("Traceback:\n  File x\nKeyError: 'y'\n", "KeyError: 'y'", "doctor"),
        ("", "nothing", "doctor"),
    ],
)
def test_last_words_and_what_they_come_to(words: str, what: str, remedy: str) -> None:
    found = diagnosed(words, "linux", "x86_64")
    assert what in found.what
    assert remedy in found.remedy


def test_on_an_intel_python_it_is_that() -> None:
    assert "Intel" in diagnosed("ModuleNotFoundError: No module named 'mlx'", "darwin", "x86_64").what


def test_last_line() -> None:
    assert last_line("a\n  b \n\n") == "b"
