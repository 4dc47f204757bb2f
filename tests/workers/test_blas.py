"""What a worker's environment says of OpenBLAS."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlx_roster.workers.blas import SMALL, SWITCH, openblas, preloaded

HERE = openblas() is not None
#: Prints how many threads OpenBLAS uses in a worker after a load of so many bytes.
COUNT = (
    "import ctypes, sys; from mlx_roster.workers.blas import limit_threads; limit_threads(int(sys.argv[1]));"
    "print(ctypes.CDLL(None).openblas_get_num_threads())"
)


def threads(weights: int, **environment: str) -> int:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(weights)],
        env=preloaded(inherited | environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_the_switch_keeps_it_out() -> None:
    assert preloaded({SWITCH: "off", "A": "b"}) == {SWITCH: "off", "A": "b"}


def test_what_is_preloaded_already_stays() -> None:
    environment = preloaded({"LD_PRELOAD": "libother.so"})
    assert environment["LD_PRELOAD"].endswith("libother.so")
    assert ("openblas" in environment["LD_PRELOAD"]) == HERE
    assert preloaded({"LD_PRELOAD": "libopenblas.so.0"}) == {"LD_PRELOAD": "libopenblas.so.0"}


@pytest.mark.skipif(not HERE, reason="this machine has no OpenBLAS to preload, which the server does without")
def test_a_small_model_gets_one_thread_unless_the_environment_says_otherwise() -> None:
    assert threads(SMALL - 1) == 1
    assert threads(SMALL) == threads(SMALL, OPENBLAS_NUM_THREADS=str(os.cpu_count()))
    assert threads(SMALL - 1, OPENBLAS_NUM_THREADS="2") == min(2, os.cpu_count() or 1)
