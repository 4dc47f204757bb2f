"""What `/v1/models` says of one model or adapter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listing:
    """A catalog entry and its Resident, if it has one. Bytes are None where they are not known yet.

    `state` is that of `overview.ModelStatus`. `measured` is what is taken now, without what may still come.
    An adapter has its base as `parent` and shows its base's state: the two are resident together or not at all.
    """

    id: str
    parent: str | None
    created: int
    aliases: tuple[str, ...]
    adapters: tuple[str, ...]
    state: str
    estimated: int | None
    measured: int | None
    in_flight: int
    queued: int
    pinned: bool
    max_context: int | None
