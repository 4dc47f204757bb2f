"""What there is to know of a machine, an installation and a roster. Values only: see `gathering`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlx_roster.check import Report
from mlx_roster.config import Roster
from mlx_roster.core import Device

#: Whether a server could listen where the roster says: it could; one of ours does; somebody else does; the system
#: refuses; there is no such address.
Place = Literal["free", "ours", "taken", "denied", "unknown"]


@dataclass(frozen=True, slots=True)
class Platform:
    """`system` and `machine` as Python's platform module has them; `translated`: by Rosetta."""

    system: str
    machine: str
    release: str
    python: tuple[int, int, int]
    translated: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """A package of Python and whether it is of a version that is known to do. `installed` is None where it is not."""

    name: str
    wanted: str
    installed: str | None
    fits: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """A worker's accelerator; or its last words, where it could not start."""

    device: Device | None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `wired_limit` is macOS's iogpu.wired_limit_mb, 0 where the system decides and None where there is none;
    `largest` are other processes that take much of it."""

    total: int
    available: int
    swap_used: int
    wired_limit: int | None = None
    largest: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Blas:
    """The system's OpenBLAS, for Linux CPUs: its soname, and whether workers are kept from it."""

    library: str | None
    off: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server would listen, and who does now. `health` is the status that a server of ours answers with."""

    host: str
    port: int
    place: Place
    reason: str = ""
    url: str = ""
    version: str | None = None
    health: int | None = None
    status: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Open files that a server can have, what it may ask for, and connections that the system lets wait for it; None
    is no limit, or not known."""

    files: int
    files_hard: int | None
    backlog: int | None


@dataclass(frozen=True, slots=True)
class Cache:
    """The Hub cache. Bytes; `size` is None where there was too much to count in time."""

    folder: Path
    exists: bool
    writable: bool
    free: int | None
    size: int | None
    models: int = 0
    #: Downloads that did not end, and repos with files that are named and not there.
    unfinished: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hub:
    """Whether models can be downloaded. `reachable` is None where nobody asked; `token` that there is one."""

    offline: str | None
    reachable: bool | None
    token: bool


@dataclass(frozen=True, slots=True)
class RosterFacts:
    """The roster file, if there is one. `problems` keep it from being read; `report` is what `check` says of it.

    `readable_by_others` is of a file with keys in it; `discovered` are models that would be served without a file.
    """

    path: Path | None
    roster: Roster | None = None
    problems: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    report: Report | None = None
    readable_by_others: bool = False
    discovered: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it."""

    platform: Platform
    packages: tuple[Package, ...]
    engine: Engine
    memory: Memory
    blas: Blas
    address: Address | None
    limits: Limits
    cache: Cache
    hub: Hub
    roster: RosterFacts
    #: Those variables of the environment that mean something to us.
    environment: Mapping[str, str] = field(default_factory=dict)
