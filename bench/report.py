"""From samples to tables: targets, what was reached, and on which machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

from bench.servers import Blas, Peer
from mlx_roster.workers.blas import openblas

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: series `ours` over series `other`, pair by pair; or `ours` as it is.

    `targets` are for OpenBLAS and for none; None is a figure without one.
    """

    label: str
    ours: str
    other: str | None
    sense: Literal["≥", "≤"]
    targets: tuple[float | None, float | None]


ROWS = [
    Row("16 streams, one model: tokens/s over mlx_lm.server", "ours, one model", "peer, one model", "≥", (2, 0.97)),
    Row(
        "16 streams alternating between two models: tokens/s over mlx_lm.server",
        "ours, two models",
        "peer, two models",
        "≥",
        (4, 1.5),
    ),
    Row("the same over its own one-model rate", "ours, two models", "ours, one model", "≥", (0.9, 0.9)),
    Row(
        "16 streams over 16 adapters of one base: tokens/s over mlx_lm.server",
        "ours, 16 adapters",
        "peer, 16 adapters",
        "≥",
        (5, 1.7),
    ),
    Row("the same over its own one-adapter rate", "ours, 16 adapters", "ours, one adapter", "≥", (0.9, 0.9)),
    Row(
        "16 streams through HTTP over the bare BatchGenerator loop",
        "ours, one model",
        "bare, one model",
        "≥",
        (0.8, 0.93),
    ),
    Row(
        "two 0.8 GB models, requests alternating: time to first token over an undisturbed one's",
        "ours, two large models",
        "ours, one large model",
        "≤",
        (1.1, None),
    ),
    Row("the same for mlx_lm.server", "peer, two large models", "peer, one large model", "≤", (None, None)),
    Row(
        "cold request to first token over mlx_lm.load + first token, mlx imported",
        "ours, cold",
        "bare, cold",
        "≤",
        (1.3, None),
    ),
    Row(
        "longest pause in a stream while a 0.8 GB model loads, over the longest without",
        "ours, longest pause during a load",
        "ours, longest pause without a load",
        "≤",
        (2, None),
    ),
    Row("256 simultaneous connections: requests lost", "ours, burst, lost", None, "≤", (0, 0)),
    Row("… seconds lost to connection retries", "ours, burst, seconds of retries", None, "≤", (0, 0)),
    Row("… requests lost by mlx_lm.server", "peer, burst, lost", None, "≤", (None, None)),
    Row("… seconds of mlx_lm.server's", "peer, burst, seconds of retries", None, "≤", (None, None)),
]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def judged(row: Row, samples: Samples, blas: Blas) -> dict[str, Any] | None:
    """A row with its figures, or None where they were not measured. `reached` is None without a target."""
    if row.ours not in samples or (row.other is not None and row.other not in samples):
        return None
    values = list(samples[row.ours])
    if row.other is not None:
        values = [ours / other for ours, other in zip(values, samples[row.other], strict=True)]
    median = statistics.median(values)
    target = row.targets[0 if blas == "system" else 1]
    reached = None if target is None else median >= target if row.sense == "≥" else median <= target
    return {"label": row.label, "values": values, "median": median, "target": target, "reached": reached}


def machine() -> dict[str, str]:
    """Where and with what this was measured."""
    versions = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "mlx-roster")}
    return {
        "processor": _processor(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        **versions,
        "OpenBLAS": _openblas_version(),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "as the library has it"),
        "mlx_lm.server flags": " ".join(Peer.FLAGS),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return found or platform.processor() or platform.machine()


def _openblas_version() -> str:
    """As the library itself tells, with what it makes of this processor."""
    library = openblas()
    if library is None:
        return "none found"
    # In a process of its own: loading it here would bring its threads with it.
    code = (
        f"import ctypes; get = ctypes.CDLL({library!r}).openblas_get_config; "
        "get.restype = ctypes.c_char_p; print(get().decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return f"{library}: {done.stdout.strip() or 'unknown version'}"


def show(samples: Samples, blas: Blas, against: Sequence[Row] = ROWS) -> list[dict[str, Any]]:
    """Print both tables; returns the rows of the first."""
    name = "with OpenBLAS" if blas == "system" else "without OpenBLAS" if openblas() else "as installed"
    rows = [row for row in (judged(row, samples, blas) for row in against) if row is not None]
    senses = {row.label: row.sense for row in against}
    table(
        f"Against the targets, {name}",
        ("", "median (min to max)", "target", "reached"),
        [
            (
                row["label"],
                spread(row["values"]),
                "report" if row["target"] is None else f"{senses[row['label']]} {row['target']:g}",
                {None: "", True: "yes", False: "NO"}[row["reached"]],
            )
            for row in rows
        ],
    )
    table(
        f"Measured, {name}: tokens/s and seconds",
        ("series", "median (min to max)", "rounds"),
        [(series, spread(values), str(len(values))) for series, values in samples.items()],
    )
    return rows


def show_machine(facts: Mapping[str, str]) -> None:
    table("Machine", ("", ""), list(facts.items()))


def table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """For eyes on a terminal; as markdown anywhere else."""
    console = Console()
    if console.is_terminal and "NO_COLOR" not in os.environ:
        shown = Table(*head, title=title, title_justify="left")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)
        return
    print(f"\n### {title}\n")
    for line in [head, ["---"] * len(head), *lines]:
        print(f"| {' | '.join(line)} |")
