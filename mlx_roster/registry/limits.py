"""How many may wait: for one model, for all together, and of one client."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from mlx_roster.errors import QueueFull
from mlx_roster.registry.board import Board
from mlx_roster.registry.events import Acquire
from mlx_roster.registry.forecast import retry_after
from mlx_roster.registry.policy import Terms
from mlx_roster.registry.resident import Resident


def queue_full(board: Board, event: Acquire, terms: Terms) -> QueueFull | None:
    """Why a request that would have to wait may not, if that is so."""
    model, limit, said = event.model, terms.max_queued, None
    line = board.queue.lines.get(model)
    here = line.counted if line is not None else 0
    here += sum(board.unplaced(one) for one in board.ledger if one.model == model)
    if limit is not None and here >= limit:
        said = f"{here} requests wait for {model} already, and its max_queued is {limit}"
    elif (everywhere := board.queued) >= board.policy.max_queued:
        said = f"{everywhere} requests wait already, and scheduling.max_queued is {board.policy.max_queued}"
    elif event.client is not None:
        said = _client_full(board, event, event.client, limit)
    return None if said is None else QueueFull(said, param="model", retry_after=retry_after(board, model))


def _client_full(board: Board, event: Acquire, client: str, places: int | None) -> str | None:
    """Why it may not as one of `client`'s, if that is so; of all who wait for the model, there may be so many."""
    most = _half(board.policy.max_queued) if event.client_limit is None else event.client_limit
    own = board.queue.clients[client] + _beyond(board, client, board.ledger)
    if own >= most:
        return f"{own} requests of this API key wait already, and no more than {most} of its may"
    if event.client_limit is None and places is not None:
        most, line = _half(places), board.queue.lines.get(event.model)
        waiters = () if line is None else line.waiters.values()
        own = sum(one.client == client and not one.exempt for one in waiters)
        own += _beyond(board, client, (one for one in board.ledger if one.model == event.model))
        if own >= most:
            return f"{own} requests of this API key wait for {event.model} already, and no more than {most} of its may"
    return None


def _half(places: int) -> int:
    return (places + 1) // 2


def _beyond(board: Board, client: str, residents: Iterable[Resident]) -> int:
    """How many of `client`'s requests have a lease, but no place in the batch: that is for those who came first."""
    count = 0
    for resident in residents:
        last = heapq.nlargest(board.unplaced(resident), resident.leases)
        count += sum(board.holders[ticket].client == client for ticket in last)
    return count
