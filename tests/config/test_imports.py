from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "numpy", "huggingface_hub")


@pytest.mark.parametrize(
    "module",
    [
        "mlx_roster.config",
        "mlx_roster.config.load",
        "mlx_roster.config.machine",
        "mlx_roster.config.schema",
        "mlx_roster.config.source",
        "mlx_roster.config.watch",
        "mlx_roster.loaders.sizes",
        "mlx_roster.loaders.source",
        "mlx_roster.check",
        "mlx_roster.reading",
    ],
)
def test_a_fresh_interpreter_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert "mlx_roster" in ran.stdout.split()
    assert not set(HEAVY) & set(ran.stdout.split())
