"""From runs to a table: medians over the seeds, and the worst wait of all."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.simulation.world import Outcome, Request


@dataclass(frozen=True, slots=True)
class Waits:
    """One model's, in seconds; those of clients that gave up are as long as they waited."""

    model: str
    served: float
    p50: float
    p95: float
    worst: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy in one scenario. Shares are percentages; `loads` are per hour."""

    scenario: str
    load: float
    policy: str
    served: float
    loads: float
    models: tuple[Waits, ...]


def figures(scenario: str, load: float, policy: str, outcomes: Sequence[Outcome], hours: float) -> Figures:
    models = dict.fromkeys(request.model for outcome in outcomes for request in outcome.requests)
    return Figures(
        scenario,
        load,
        policy,
        statistics.median(_served(outcome.requests) for outcome in outcomes),
        statistics.median(outcome.loads / hours for outcome in outcomes),
        tuple(_waits(model, [outcome.of(model) for outcome in outcomes]) for model in sorted(models)),
    )


def _waits(model: str, seeds: Sequence[Sequence[Request]]) -> Waits:
    asked = [requests for requests in seeds if requests]
    waits = [sorted(request.wait for request in requests if not request.refused) or [0.0] for requests in asked]
    return Waits(
        model,
        statistics.median(map(_served, asked)),
        statistics.median(_at(one, 0.5) for one in waits),
        statistics.median(_at(one, 0.95) for one in waits),
        max(one[-1] for one in waits),
    )


def _served(requests: Sequence[Request]) -> float:
    return 100 * sum(request.served for request in requests) / len(requests) if requests else 100.0


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(rows: Sequence[Figures]) -> None:
    table = Table("scenario", "load", "policy", "served", "loads/h", "model", "served", "p50", "p95", "max")
    before = None
    for row in rows:
        if before != (row.scenario, row.load):
            table.add_section()
        first = (row.scenario, f"{row.load:g} s") if before != (row.scenario, row.load) else ("", "")
        before = (row.scenario, row.load)
        start = (*first, row.policy, f"{row.served:.1f} %", f"{row.loads:.0f}")
        for number, one in enumerate(row.models):
            cells = (one.model, f"{one.served:.1f} %", f"{one.p50:.1f}", f"{one.p95:.1f}", f"{one.worst:.1f}")
            table.add_row(*(start if not number else ("",) * 5), *cells)
    # A pipe has no width, and the table is wider than the default.
    Console(width=None if sys.stdout.isatty() else 140).print(table)
