"""`python -m mlx_roster` is `mlx-roster`."""

from mlx_roster.cli import app

app(prog_name="mlx-roster")
