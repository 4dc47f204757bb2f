"""One sampler for all rows of a batch.

mlx-lm calls a sampler once for a whole batch where all rows share the same object; this one looks up, in the rows
of the forward pass just made, how each of them wants its token.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Draw


class Sampler:
    """Log-probabilities (B, V) to tokens (B,). Called right after the forward pass of the same rows."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def __call__(self, logprobs: mx.array) -> mx.array:
        rows = self._routing.rows
        if rows.greedy:
            return mx.argmax(logprobs, axis=-1)
        draw = rows.draw
        noise = _noise(draw, logprobs.shape[-1])
        draw.draws = draw.draws + 1
        rows.drew()
        kept = _cut(logprobs, draw) if draw.sorts else logprobs
        drawn = mx.argmax(kept.astype(mx.float32) / draw.temperature + noise, axis=-1)
        return mx.where(draw.greedy[:, 0], mx.argmax(logprobs, axis=-1), drawn) if draw.mixed else drawn


def _noise(draw: Draw, vocabulary: int) -> mx.array:
    """Gumbel noise (B, V): its argmax over log-probabilities is a draw from them.

    A row's noise hangs on its seed and its own count of draws only, so neighbours do not change what it draws.
    """
    keys = mx.concatenate([draw.seeds[:, :1], draw.seeds[:, 1:] ^ draw.draws], axis=1)
    noise: mx.array = mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)
    return noise


def _cut(logprobs: mx.array, draw: Draw) -> mx.array:
    """Rule out (-inf) what top_p, min_p or top_k cut off, each row by its own, before temperature, as mlx-lm does.

    top_p keeps the likeliest tokens until their mass reaches it, min_p those at least that likely relative to the
    likeliest, top_k that many. All three keep an upper end of the sorted row, so the shortest of them decides.
    """
    falling = -mx.sort(-logprobs, axis=-1)
    mass = mx.exp(falling.astype(mx.float32))
    above = mx.cumsum(mass, axis=-1, inclusive=False)
    inside_p = (above < draw.top_p * mass.sum(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
    inside_min = (mass >= draw.min_p * mass[:, :1]).sum(axis=-1, keepdims=True)
    count = mx.minimum(mx.minimum(inside_p, inside_min), draw.top_k)
    # At least one survives, whatever was asked.
    last = mx.clip(count - 1, 0, logprobs.shape[-1] - 1)
    threshold = mx.take_along_axis(falling, last, axis=-1)
    return mx.where(logprobs >= threshold, logprobs, -mx.inf)
