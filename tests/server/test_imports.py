"""The server process never loads what belongs into workers."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import mlx_roster.server.app
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_server_loads_neither_mlx_nor_its_company() -> None:
    loaded = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout.split()
    assert "mlx_roster" in loaded
    assert not {"mlx", "mlx_lm", "transformers", "torch", "numpy", "tokenizers", "safetensors"} & set(loaded)
