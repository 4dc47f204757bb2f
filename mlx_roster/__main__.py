"""`python -m mlx_roster` is `mlx-roster`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  a checkout can be run by any Python, and this line is read by old ones
    sys.exit(
        f"mlx-roster needs Python 3.11 or later, and {sys.executable} is older\n"
        "with a newer one: python3.11 -m pip install mlx-roster"
    )

from mlx_roster.cli import app

app(prog_name="mlx-roster")
