"""The state in words and figures, for `/v1/models` and `/admin`. Reading it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mlx_roster.config import ModelEntry
from mlx_roster.core import Ref
from mlx_roster.registry.board import Board
from mlx_roster.registry.catalog import Catalog
from mlx_roster.registry.listing import Listing
from mlx_roster.registry.overview import Happening, Memory, ModelBytes, ModelStatus
from mlx_roster.registry.resident import Resident, State

#: Bytes so far and bytes in all, by model.
Progress = Mapping[str, tuple[int, int]]


def state_of(board: Board, model: str, at: float) -> str:
    """One word: see `overview.ModelStatus.state`."""
    resident = _shown(board, model)
    if resident is not None:
        pending = resident.state is State.LOADING and resident.started is None
        return "waiting" if pending else resident.state.value
    line = board.queue.lines.get(model)
    if line is not None:
        return "waiting" if line.search is None else "locating"
    record = board.records.get(model)
    return "cooldown" if record is not None and record.cools_until > at else "unloaded"


def model_status(board: Board, model: str, at: float, progress: Progress) -> ModelStatus:
    resident, record = _shown(board, model), board.records.get(model)
    if record is None and resident is not None:
        record = resident.record  # of a model that the roster no longer has
    expires = None
    if resident is not None and resident.idle and not resident.pinned and not math.isinf(resident.keep):
        expires = max(0.0, resident.idle_since + resident.keep - at)
    cooldown = max(0.0, record.cools_until - at) if record is not None else 0.0
    return ModelStatus(
        id=model,
        state=state_of(board, model, at),
        pinned=pinned(board, model),
        leases=sum(len(one.leases) for one in _all(board, model)),
        queued=board.queue.waiting(model),
        bytes=_bytes(board, model, resident),
        expires_in=None if expires is None else round(expires, 3),
        cooldown=round(cooldown, 3) or None,
        failures=max(record.failures, record.crashes) if record is not None else 0,
        load_seconds=round(record.load_time, 3) if record is not None and record.load_time is not None else None,
        progress=progress.get(model),
        events=tuple(Happening(round(max(0.0, at - when), 3), what) for when, what in record.story)
        if record is not None
        else (),
    )


def noteworthy(board: Board) -> list[str]:
    """The models of which there is something to say: residents first, then those that are waited for."""
    known = [one.model for one in board.ledger]
    return list(dict.fromkeys([*known, *board.queue.lines, *board.records]))


def memory(board: Board) -> Memory:
    return Memory(board.policy.budget, board.ledger.held, board.ledger.committed)


def pinned(board: Board, model: str) -> bool:
    record = board.records.get(model)
    if record is None:
        terms = board.terms.get(model)
        return terms is not None and terms.pin
    # Terms of thousands of models are made anew each time; what a record has is of the same roster.
    return record.entry_pinned if record.pinned is None else record.pinned


class Lister:
    """Makes Listings, thousands in one go: what belongs to a model is looked up once for it and all its adapters."""

    def __init__(self, board: Board, catalog: Catalog, created: int, at: float) -> None:
        self._board = board
        self._catalog = catalog
        self._created = created
        self._at = at
        self._base: Listing | None = None

    def listed(self, ref: Ref) -> Listing:
        spec = self._catalog.adapter(ref)
        base = self._of(ref.model)
        if spec is None:
            return base
        return Listing(
            ref.id,
            ref.model,
            base.created,
            tuple(spec.aliases),
            (),
            base.state,
            base.estimated,
            base.measured,
            base.in_flight,
            base.queued,
            base.pinned,
            base.max_context,
        )

    def _of(self, model: str) -> Listing:
        if self._base is not None and self._base.id == model:
            return self._base
        entry = self._catalog.entry(model)
        assert entry is not None, f"{model} is in no catalog"
        self._base = self._made(model, entry)
        return self._base

    def _made(self, model: str, entry: ModelEntry) -> Listing:
        board = self._board
        resident, record = _shown(board, model), board.records.get(model)
        return Listing(
            model,
            None,
            self._created,
            tuple(entry.aliases),
            tuple(entry.adapters),
            state_of(board, model, self._at),
            None if record is None else record.estimate,
            None if resident is None else resident.measured,
            0 if resident is None else len(resident.leases),
            board.queue.waiting(model),
            entry.pin if record is None or record.pinned is None else record.pinned,
            entry.max_context,
        )


def _shown(board: Board, model: str) -> Resident | None:
    """The Resident that stays, if there is one, else one on its way out."""
    current = board.ledger.current(model)
    if current is not None or not board.ledger.leaving:
        return current
    return next(iter(board.ledger.departing(model)), None)


def _all(board: Board, model: str) -> Iterator[Resident]:
    """The Resident that stays, and those on their way out."""
    current = board.ledger.current(model)
    if current is not None:
        yield current
    if board.ledger.leaving:
        yield from board.ledger.departing(model)


def _bytes(board: Board, model: str, resident: Resident | None) -> ModelBytes:
    record = board.records.get(model)
    estimated = None if record is None else record.estimate
    if resident is None or resident.measured is None:
        return ModelBytes(estimated=estimated if resident is None else resident.estimated)
    return ModelBytes(estimated or resident.estimated, resident.measured, resident.growth, resident.share)
