"""How many may wait: for one model, for all together, and of one client."""

from __future__ import annotations

import heapq

from mlx_roster.errors import QueueFull
from mlx_roster.registry.board import Board
from mlx_roster.registry.events import Acquire
from mlx_roster.registry.forecast import retry_after
from mlx_roster.registry.policy import Terms


def queue_full(board: Board, event: Acquire, terms: Terms) -> QueueFull | None:
    """Why a request that would have to wait may not, if that is so."""
    model, client, limit = event.model, event.client, event.client_limit
    line = board.queue.lines.get(model)
    here, everywhere = line.counted if line is not None else 0, board.queue.counted
    for resident in board.ledger:
        # With a lease but no place in the batch yet.
        if resident.leases and (found := board.terms.get(resident.model)) is not None:
            beyond = max(0, len(resident.leases) - found.max_concurrency)
            everywhere += beyond
            here += beyond if resident.model == model else 0
    if terms.max_queued is not None and here >= terms.max_queued:
        said = f"{here} requests wait for {model} already, and its max_queued is {terms.max_queued}"
    elif everywhere >= board.policy.max_queued:
        said = f"{everywhere} requests wait already, and scheduling.max_queued is {board.policy.max_queued}"
    elif client is not None and limit is not None and (own := _of(board, client)) >= limit:
        said = f"{own} requests of this API key wait already, and no more than {limit} of its may"
    else:
        return None
    return QueueFull(said, param="model", retry_after=retry_after(board, model))


def _of(board: Board, client: str) -> int:
    """How many of `client`'s requests wait, for whatever model. A batch has places for those who have come first."""
    count = board.queue.clients[client]
    for resident in board.ledger:
        terms = board.terms.get(resident.model)
        if terms is not None and (beyond := len(resident.leases) - terms.max_concurrency) > 0:
            last = heapq.nlargest(beyond, resident.leases)
            count += sum(board.holders[ticket].client == client for ticket in last)
    return count
