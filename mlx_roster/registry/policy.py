"""The rules that decisions follow, as far as a roster sets them. Seconds and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlx_roster.config import ModelEntry, Multiple, SchedulingSettings

#: A fresh Resident serves three times as long as it took to load, unless a roster says otherwise.
THREE_LOADS = Multiple(3)

#: The cooldown after a first failed load doubles with each further one, up to the last; for crashes from the second on.
FIRST_COOLDOWN = 10.0
LAST_COOLDOWN = 300.0

#: A worker that has lived so long did not die of being loaded: its crashes before are forgotten.
STEADY = 60.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for all models. The fields are those of `memory` and `scheduling` in a roster."""

    budget: int
    max_wait: float = 30.0
    min_residency: Multiple | float = THREE_LOADS
    queue_timeout: float = 120.0
    max_queued: int = 512
    load_timeout: float = 300.0
    drain_timeout: float = 60.0
    stall_timeout: float = 60.0

    @classmethod
    def of(cls, scheduling: SchedulingSettings, budget: int) -> Policy:
        return cls(
            budget,
            scheduling.max_wait,
            scheduling.min_residency,
            scheduling.queue_timeout,
            scheduling.max_queued,
            scheduling.load_timeout,
            scheduling.drain_timeout,
            scheduling.stall_timeout,
        )

    def residency(self, load_time: float) -> float:
        """How long a Resident whose load took `load_time` takes leases in any case."""
        if isinstance(self.min_residency, Multiple):
            return self.min_residency.factor * load_time
        return self.min_residency


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for one model. A Resident made under another `version` is not what the entry describes now; an
    estimate made for another `sizing` no longer holds."""

    version: object = None
    sizing: object = None
    ttl: float = math.inf
    pin: bool = False
    priority: int = 0
    max_queued: int | None = None
    max_concurrency: int = 32

    @classmethod
    def of(cls, entry: ModelEntry, scheduling: SchedulingSettings) -> Terms:
        ttl = scheduling.ttl if entry.ttl is None else entry.ttl
        # What a worker is told once, when it loads. The rest can be told it while it runs.
        drafts = tuple((draft.name, draft.tokens, draft.origin) for draft in entry.draft)
        version = (
            str(entry.source),
            entry.revision,
            entry.max_adapters,
            entry.trust_remote_code,
            entry.kv,
            entry.chat_template,
            entry.chat_template_args,
            drafts,
        )
        sizing = (entry.adapters, entry.max_concurrency, entry.max_context)
        return cls(version, sizing, ttl, entry.pin, entry.priority, entry.max_queued, entry.max_concurrency)


def cooldown(failures: int) -> float:
    """How long a model is left alone after so many failures in a row."""
    return min(FIRST_COOLDOWN * 2.0 ** min(failures - 1, 16), LAST_COOLDOWN) if failures > 0 else 0.0
