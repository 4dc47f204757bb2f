"""What the commands need of the admin API's answers. There may be more in them; less is no answer of ours."""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec


class Happening(TypedDict):
    seconds_ago: float
    what: str


class ModelBytes(TypedDict):
    estimated: int | None
    measured: int | None


class Model(TypedDict):
    id: str
    state: str
    pinned: bool
    leases: int
    queued: int
    bytes: ModelBytes
    expires_in: float | None
    cooldown: float | None
    progress: tuple[int, int] | None
    events: list[Happening]


class Memory(TypedDict):
    budget: int
    held: int
    committed: int


class Preload(TypedDict):
    total: int
    done: int
    failed: list[str]


class Reload(TypedDict):
    seconds_ago: float
    ok: bool
    error: str | None
    added: list[str]
    changed: list[str]
    removed: list[str]
    settings: list[str]
    notes: list[str]


class Overview(TypedDict):
    memory: Memory
    preload: Preload
    reload: Reload | None
    models: list[Model]


class Change(TypedDict):
    kind: str
    model: str | None
    fields: dict[str, Any]


class Told(TypedDict):
    message: str
    type: str
    code: str


class Error(TypedDict):
    error: Told


def fits(body: object, shape: type[object]) -> bool:
    """Whether decoded JSON is of `shape`, one of the above."""
    try:
        msgspec.convert(body, shape)
    except msgspec.ValidationError:
        return False
    return True
