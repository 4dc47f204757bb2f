"""The picture of it: how long requests wait, and who has the slot. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.simulation.world import Outcome, Scenario, Span

COLOURS = {"A": "#2b6cb0", "B": "#e07b1a", "C": "#2f855a"}
LOADING = "#c3cad4"
STYLES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")

#: Seconds of waiting that are shown.
LONGEST = 150.0

#: Seconds that the timelines show: after the first few minutes, when all is under way.
FROM, TO = 1200.0, 1800.0

#: By policy, one for each seed.
Runs = Mapping[str, Sequence[Outcome]]


def draw(file: Path, scenarios: Sequence[tuple[str, Scenario, Runs]]) -> None:
    """A row for each scenario."""
    pyplot.switch_backend("agg")
    shape = (len(scenarios), 2)
    size = (14, 3.1 * len(scenarios))
    figure, axes = pyplot.subplots(*shape, figsize=size, width_ratios=(1, 1.4), squeeze=False, layout="constrained")
    for (waits, slot), (name, scenario, runs) in zip(axes, scenarios, strict=True):
        _waits(waits, name, scenario, runs)
        _timeline(slot, {policy: outcomes[0].spans for policy, outcomes in runs.items()})
    axes[-1][0].set_xlabel("seconds from a request to its start")
    axes[-1][1].set_xlabel("minutes: who has the slot, for ten minutes of the first seed")
    _legend(axes[0][0], axes[0][1], scenarios)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def _waits(axes: Axes, name: str, scenario: Scenario, runs: Runs) -> None:
    """The share of requests that have begun after so many seconds. It stays below 100 where clients give up."""
    for style, (_, outcomes) in zip(STYLES, runs.items(), strict=False):
        for model in scenario.rates:
            asked = [request for outcome in outcomes for request in outcome.of(model)]
            waits = sorted(request.wait for request in asked if request.served)
            shares = [100 * number / len(asked) for number in range(len(waits) + 1)]
            axes.step([0, *waits, LONGEST], [*shares, shares[-1]], style, color=COLOURS[model], where="post")
    rates = ", ".join(f"{model} {rate:g}/s" for model, rate in scenario.rates.items())
    axes.set_title(f"{name}: {rates}; a load takes {scenario.load:g} s", fontsize=11, loc="left")
    axes.set_ylabel("% of requests begun")
    axes.set(xlim=(0, LONGEST), ylim=(0, 102))
    axes.grid(alpha=0.3)


def _timeline(axes: Axes, spans: Mapping[str, Sequence[Span]]) -> None:
    for row, (policy, seen) in enumerate(reversed(list(spans.items()))):
        shown = [span for span in seen if span.end > FROM and span.start < TO]
        for span in shown:
            start, end = max(span.start, FROM) / 60, min(span.end, TO) / 60
            colour = LOADING if span.state == "loading" else COLOURS[span.model]
            hatch = "////" if span.state == "draining" else None
            axes.barh(row, end - start, 0.6, start, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        loads = sum(span.state == "loading" for span in shown)
        axes.text(FROM / 60, row + 0.34, f"{policy}: {loads} loads", fontsize=9, va="bottom")
    axes.set(xlim=(FROM / 60, TO / 60), ylim=(-0.45, len(spans) - 0.35), yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)


def _legend(waits: Axes, slot: Axes, scenarios: Sequence[tuple[str, Scenario, Runs]]) -> None:
    policies = dict.fromkeys(policy for _, _, runs in scenarios for policy in runs)
    models = sorted({model for _, scenario, _ in scenarios for model in scenario.rates})
    lines = [
        Line2D([], [], color="black", linestyle=style, label=policy)
        for style, policy in zip(STYLES, policies, strict=False)
    ]
    waits.legend(handles=lines, fontsize=9, loc="center")
    patches = [
        *(Patch(color=COLOURS[model], label=model) for model in models),
        Patch(facecolor=COLOURS["A"], edgecolor="white", hatch="////", label="draining"),
        Patch(color=LOADING, label="loading"),
    ]
    slot.legend(
        handles=patches, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(patches), frameon=False
    )
