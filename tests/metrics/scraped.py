"""What a scrape says, taken apart; and a Metrics to which everything has happened that is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mlx_roster.core import Counters
from mlx_roster.metrics import Account, Metrics
from mlx_roster.registry.overview import Change, Memory, ModelBytes, ModelStatus, Overview, Preloads

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

READY = ModelStatus("atlas", "ready", False, 1, 2, ModelBytes(5, 7), None, None, 0, 1.0, None, ())

#: Everything that may be said in changes.
CHANGES = (
    Change("grant", "atlas", {"waited": 0.5}, None),
    Change("refuse", "atlas", {"code": "model_too_large"}, None),
    Change("load", "atlas", {"serial": 1}, None),
    Change("loaded", "atlas", {"serial": 1, "seconds": 2.0}, None),
    Change("died", "atlas", {"serial": 1}, None),
    Change("loaded", "atlas", {"serial": 2, "seconds": 2.0}, None),
    Change("evict", "atlas", {"serial": 2, "why": "evicted for scribe"}, None),
    Change("reload", None, {"ok": True}, None),
)


@dataclass(frozen=True)
class Family:
    """A metric: what `# TYPE` and `# HELP` say, and its samples by name and labels."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    samples: dict[tuple[str, ...], float]
    series: tuple[tuple[str, dict[str, str], float], ...]


def account(model: str | None = "atlas", adapter: str | None = "pirate", **fields: object) -> Account:
    """A request that was served, but for `fields`."""
    served = Account(
        started=10.0,
        ended=12.0,
        operation="chat",
        model=model,
        adapter=adapter,
        status=200,
        first=10.5,
        generating=1.0,
        further_tokens=4,
        prompt_tokens=30,
        completion_tokens=5,
        cached_tokens=20,
        reasoning_tokens=2,
        accepted_tokens=2,
        rejected_tokens=1,
        finishes=["stop"],
    )
    for name, value in fields.items():
        setattr(served, name, value)
    return served


def busy() -> Metrics:
    """All there is has a series here."""
    overview = Overview("1.2.3", 1.0, Memory(100, 20, 10), 3, Preloads(), None, (READY,))
    counters = {"atlas": Counters(*range(1, 13))}
    metrics = Metrics(lambda: overview, lambda: counters, lambda model, adapter: model == "atlas")
    for change in CHANGES:
        metrics.heard(change)
    metrics.ended(account())
    metrics.ended(account(status=503, code="worker_crashed"))
    metrics.gaps("atlas", "pirate")(0.02)
    return metrics


def families(body: str) -> Iterator[Family]:
    """All of them, with the names that a query has."""
    for family in text_string_to_metric_families(body):
        names = {name for sample in family.samples for name in sample.labels} - {"le"}
        yield Family(
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            family.documentation,
            tuple(sorted(names)),
            {(one.name, *(v for k, v in sorted(one.labels.items()))): one.value for one in family.samples},
            tuple((one.name, dict(one.labels), one.value) for one in family.samples),
        )


def exposed(metrics: Metrics) -> dict[str, Family]:
    body, _ = metrics.render(OPENMETRICS)
    return {family.name: family for family in families(body.decode())}
