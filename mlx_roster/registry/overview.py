"""What `/admin/status` says, and what `/admin/events` says of changes. Plain values, ready to be encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to a model, `seconds_ago`."""

    seconds_ago: float
    what: str


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """`estimated` before the load; `measured` now, `growth` what it may come to take beside; `share` what it may take
    as long as nobody else needs it. None where it is not known."""

    estimated: int | None = None
    measured: int | None = None
    growth: int | None = None
    share: int | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model that is resident, waited for, cooling down, or was resident before. Times are in seconds."""

    id: str
    #: "unloaded", "locating" (which may mean downloading), "waiting" (for room), "loading", "ready", "draining",
    #: "unloading" or "cooldown".
    state: str
    pinned: bool
    leases: int
    queued: int
    bytes: ModelBytes
    #: None: never, or not idle.
    expires_in: float | None
    cooldown: float | None
    failures: int
    load_seconds: float | None
    #: Bytes done and in all, of a load or a download.
    progress: tuple[int, int] | None
    #: Oldest first. Says also why it was evicted.
    events: tuple[Happening, ...]


@dataclass(frozen=True, slots=True)
class Preloads:
    """How far the preloads of the start have come."""

    total: int = 0
    done: int = 0
    failed: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.done + len(self.failed) >= self.total


@dataclass(frozen=True, slots=True)
class Reload:
    """How the latest reload went. The names are those of models; `settings` are those of sections.
    `notes`: what needs a restart."""

    seconds_ago: float
    ok: bool
    error: str | None = None
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what all Residents may take, what they do take, and what is promised to those that stay."""

    budget: int
    held: int
    committed: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole registry at one moment."""

    version: str
    uptime_seconds: float
    memory: Memory
    queued: int
    preload: Preloads
    #: None: never reloaded.
    reload: Reload | None
    models: tuple[ModelStatus, ...]
    #: What `queued` may come to before the next request is refused.
    max_queued: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One decision or occurrence: `kind` is grant, queue, refuse, locate, located, load, loaded, failed, cancel, drain,
    evict, unload, cut, died, gone, pin or reload. `fields` are the figures behind it. `status` is the model's when the
    change is read.

    To those who `listen`, `status` is always None: it is made for those who read changes.
    """

    kind: str
    model: str | None
    fields: dict[str, Any]
    status: ModelStatus | None = None
