"""What the residency state machine hears and what it answers. Plain values; `at` is in seconds of one monotonic clock.

A *ticket* is one request's claim on a model: first a place in the queue, then a lease, until it leaves.
A *serial* is one Resident: a model that is unloaded and loaded again comes back under another serial.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_roster.errors import RosterError


@dataclass(frozen=True, slots=True)
class Acquire:
    """A request wants `model`, which is expected to take `estimate` bytes. The ticket is new."""

    at: float
    ticket: int
    model: str
    estimate: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The request is over, or its client has gone: out of the queue, or the lease ends. Unknown tickets are ignored."""

    at: float
    ticket: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker of `serial` is ready and takes `measured` bytes; for adapters it may come to take `growth` more."""

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
class Reported:
    """A ready worker takes `measured` bytes now, and may come to take `growth` more."""

    at: float
    serial: int
    measured: int
    growth: int = 0


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


Event = Acquire | Leave | Loaded | LoadFailed | Reported | Died | Unloaded


@dataclass(frozen=True, slots=True)
class Grant:
    """`ticket` now holds a lease on `serial`."""

    ticket: int
    serial: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """`ticket` is out, with this error."""

    ticket: int
    error: RosterError


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Load `model` as `serial`, for which `size` bytes are reserved; answer with Loaded or LoadFailed."""

    model: str
    serial: int
    size: int


@dataclass(frozen=True, slots=True)
class CancelLoad:
    """Nobody waits for this load any more: end it and answer with Unloaded."""

    serial: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop the worker of `serial`, which has no leases, and answer with Unloaded."""

    serial: int


Action = Grant | Refuse | StartLoad | CancelLoad | Unload
