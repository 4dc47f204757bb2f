"""The picture of a soak. Needs matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.chaos.ledger import Deed
from bench.soak.samples import Sample

#: Seconds of one bar.
BIN = 15.0

COLOURS = {"whole": "#2f855a", "left": "#c3cad4", "error": "#e07b1a", "lost": "#c53030"}
MARKED = {"kill": "#c53030", "rewrite": "#2b6cb0", "stop": "#805ad5"}


def draw(file: Path, samples: Sequence[Sample], ends: Sequence[tuple[float, str]], deeds: Sequence[Deed]) -> None:
    """Requests by how they ended, what was done to the server, and what it held."""
    pyplot.switch_backend("agg")
    began = samples[0].at
    figure, axes = pyplot.subplots(4, 1, figsize=(12, 11), sharex=True, layout="constrained")
    _requests(axes[0], [(at - began, said) for at, said in ends])
    _deeds(axes[0], [(deed.at - began, deed.kind) for deed in deeds])
    times = [(sample.at - began) / 60 for sample in samples]
    _lines(axes[1], times, {"workers": [sample.workers_nbytes / 2**20 for sample in samples]}, "MiB of the workers")
    _lines(axes[2], times, {"server": [sample.nbytes / 2**20 for sample in samples]}, "MiB of the server")
    held = {
        "open files": [sample.files for sample in samples],
        "tasks": [float("nan") if sample.tasks is None else sample.tasks for sample in samples],
        "threads": [sample.threads for sample in samples],
        "processes": [sample.processes for sample in samples],
    }
    _lines(axes[3], times, held, "of the server")
    axes[3].set_xlabel("minutes, from the warm-up until all is at rest again")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _requests(axes: Axes, ends: Sequence[tuple[float, str]]) -> None:
    counted: dict[str, Counter[int]] = {kind: Counter() for kind in COLOURS}
    for at, said in ends:
        counted[said if said in COLOURS else "error"][int(at // BIN)] += 1
    bins = range(max((number for count in counted.values() for number in count), default=0) + 1)
    below = [0] * len(bins)
    for kind, colour in COLOURS.items():
        heights = [counted[kind][number] for number in bins]
        label = {"whole": "answered", "left": "client left", "error": "documented error"}.get(kind, kind)
        axes.bar([(number + 0.5) * BIN / 60 for number in bins], heights, BIN / 60, below, color=colour, label=label)
        below = [sum(pair) for pair in zip(below, heights, strict=True)]
    axes.set_ylabel(f"requests in {BIN:.0f} s")
    axes.set_ylim(0, max(below, default=1) * 1.25)
    axes.legend(fontsize=9, loc="upper right", ncols=len(COLOURS) + len(MARKED), frameon=False)


def _deeds(axes: Axes, deeds: Sequence[tuple[float, str]]) -> None:
    top = axes.get_ylim()[1]
    for row, (kind, colour) in enumerate(MARKED.items()):
        times = [at / 60 for at, what in deeds if what == kind]
        label = {"kill": "worker killed", "rewrite": "roster rewritten", "stop": "process stopped"}[kind]
        axes.plot(times, [top * (0.9 - 0.045 * row)] * len(times), "|", color=colour, markersize=7, label=label)
    axes.legend(fontsize=8, loc="upper left", ncols=len(COLOURS) + len(MARKED), frameon=False)


def _lines(axes: Axes, times: Sequence[float], lines: dict[str, list[float]], unit: str) -> None:
    for label, values in lines.items():
        axes.plot(times, values, linewidth=1, label=label)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8, ncols=len(lines), frameon=False, loc="upper left")
