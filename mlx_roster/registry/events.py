"""What the residency state machine hears and what it answers. Plain values; `at` is in seconds of one monotonic clock.

A *ticket* is one request's claim on a model: first a place in the queue, then a lease, until it leaves.
A *serial* is one Resident: a model that is unloaded and loaded again comes back under another serial.
A *job* is one search for a model's files, downloads included: it ends before there is a Resident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_roster.errors import RosterError
from mlx_roster.registry.policy import Policy, Terms


@dataclass(frozen=True, slots=True)
class Acquire:
    """A request wants `model`. The ticket is new.

    `keep_alive` is how long the model is to stay after this request, in seconds; None leaves that to its ttl. One that
    is `exempt` (a preload, an operator's wish) is held up by no limit, no deadline and no cooldown. `client`: whose it
    is, where that is known; of their requests, no more than `client_limit` may wait. Where that is None, it is half of
    all that may, and half of those that may for this model.
    """

    at: float
    ticket: int
    model: str
    keep_alive: float | None = None
    exempt: bool = False
    client: str | None = None
    client_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The request is over, or its client has gone: out of the queue, or the lease ends. Unknown tickets are ignored."""

    at: float
    ticket: int


@dataclass(frozen=True, slots=True)
class Located:
    """The model's files are here, and loaded it is expected to take `estimate` bytes."""

    at: float
    job: int
    estimate: int


@dataclass(frozen=True, slots=True)
class LocateFailed:
    """The model's files are not to be had."""

    at: float
    job: int
    error: RosterError


@dataclass(frozen=True, slots=True)
class LocateProgressed:
    """At `since`, which may be past, the download of `job` got further."""

    at: float
    job: int
    since: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker of `serial` is ready and takes `measured` bytes; it may come to take `growth` more."""

    at: float
    serial: int
    measured: int
    growth: int = 0


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load of `serial` ended without a worker; all it took has been given back."""

    at: float
    serial: int
    error: RosterError
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Progressed:
    """At `since`, which may be past, the load of `serial` got further, or its worker produced something.

    `awaited`: since when a ready worker has been at one thing, or not been heard; None where it has nothing to do.
    """

    at: float
    serial: int
    since: float
    awaited: float | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """A ready worker takes `measured` bytes now, and may come to take `growth` more.

    Of the measured ones, it would give back `spare` at once if it were told to.
    """

    at: float
    serial: int
    measured: int
    growth: int = 0
    spare: int = 0


@dataclass(frozen=True, slots=True)
class Died:
    """A ready worker is lost, with its memory. Its streams have been told by their worker's handle."""

    at: float
    serial: int


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The worker of `serial` has exited and its memory is back, whether it was ready or still loading."""

    at: float
    serial: int


@dataclass(frozen=True, slots=True)
class Pin:
    """An operator pins a model, or unpins it, whatever its entry says."""

    at: float
    model: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Withdraw:
    """An operator wants `model` unloaded: once its leases have ended or, with `force`, now."""

    at: float
    model: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """The roster has changed, or is there for the first time. `terms` has every model there now is.

    A Resident whose model is gone from `terms`, or has another `version` there, drains.
    """

    at: float
    policy: Policy
    terms: Mapping[str, Terms]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `Residency.wake` said when this was due."""

    at: float


Event = (
    Acquire
    | Leave
    | Located
    | LocateFailed
    | LocateProgressed
    | Loaded
    | LoadFailed
    | Progressed
    | Reported
    | Died
    | Unloaded
    | Pin
    | Withdraw
    | Configure
    | Tick
)


@dataclass(frozen=True, slots=True)
class Grant:
    """`ticket` now holds a lease on `serial`."""

    ticket: int
    serial: int


@dataclass(frozen=True, slots=True)
class Queue:
    """`ticket` has to wait. `why`: for people."""

    ticket: int
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """`ticket` is out, with this error."""

    ticket: int
    model: str
    error: RosterError


@dataclass(frozen=True, slots=True)
class Locate:
    """Find `model`'s files, and download what is not here; answer with Located or LocateFailed."""

    model: str
    job: int


@dataclass(frozen=True, slots=True)
class CancelLocate:
    """Nobody waits for this any more: end it. What it would answer is ignored.

    `stalled`: why it is given up, where it is no other's doing that it is.
    """

    job: int
    stalled: str | None = None


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Load `model` as `serial`, for which `size` bytes are reserved; answer with Loaded or LoadFailed."""

    model: str
    serial: int
    size: int


@dataclass(frozen=True, slots=True)
class CancelLoad:
    """End this load and answer with Unloaded. One that has `stalled` is given up: nobody's wish has changed."""

    serial: int
    why: str
    stalled: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """`serial` takes no new leases from here on: only said, there is nothing to do. Unload follows its last lease."""

    serial: int
    why: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop the worker of `serial`, which has no leases, and answer with Unloaded."""

    serial: int
    why: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Stop the worker of `serial` although it has leases: its streams end with `error`. Answer with Unloaded.

    One that `hangs` would not hear that it is to stop.
    """

    serial: int
    error: RosterError
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """The worker of `serial` may take `size` bytes from now on: its own, and what nobody else needs."""

    serial: int
    size: int


Action = Grant | Queue | Refuse | Locate | CancelLocate | StartLoad | CancelLoad | Drain | Unload | Cut | Share
