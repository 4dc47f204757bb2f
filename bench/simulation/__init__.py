"""The swap policy on a fake clock: `python -m bench.simulation`. What it simulates: docs/performance.md."""
