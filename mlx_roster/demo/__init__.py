"""What `mlx-roster demo` serves: two chat models and three adapters small enough to ship as package data."""

from pathlib import Path


def directory() -> Path:
    """The folder that holds `roster.yaml`, `models/` and `adapters/`, as installed."""
    return Path(__file__).parent
