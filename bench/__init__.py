"""Measurements, beside the package and no part of it: `python -m bench.serving`."""
