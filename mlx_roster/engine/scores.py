"""Log-probabilities of tokens that were drawn, and of those that were likeliest."""

from __future__ import annotations

from functools import cached_property

import mlx.core as mx
import numpy as np


class Scores:
    """Of one draw, for some rows. Computed on the device at once, and moved to the host when first looked at."""

    def __init__(self, logits: mx.array, tokens: mx.array, count: int) -> None:
        """Raw logits (n, V), the tokens drawn (n,), and how many likeliest ones are wanted with them."""
        self._count = min(count, logits.shape[-1])
        logits = logits.astype(mx.float32)
        ids = tokens[:, None].astype(mx.uint32)
        if self._count:
            largest = mx.argpartition(logits, -self._count, axis=-1)[:, -self._count :]
            ids = mx.concatenate([ids, largest.astype(mx.uint32)], axis=-1)
        scores = mx.take_along_axis(logits, ids, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
        # As integers both travel together, and no bit of them changes.
        self._device: mx.array | None = mx.concatenate([ids, scores.view(mx.uint32)], axis=-1)
        mx.async_eval(self._device)  # type: ignore[no-untyped-call]

    def read(self, index: int, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Of the row at `index`, which drew `token`: its log-probability, and so many likeliest ones, falling."""
        ids, scores = (half[index] for half in self._host)
        assert ids[0] == token
        best = np.lexsort((ids[1:], -scores[1:]))[:count] + 1
        return float(scores[0]), list(zip(ids[best].tolist(), scores[best].tolist(), strict=True))

    @cached_property
    def _host(self) -> tuple[np.ndarray, np.ndarray]:
        held = np.array(self._device)
        self._device = None
        ids, scores = held[:, : self._count + 1], held[:, self._count + 1 :]
        return ids, scores.view(np.float32)
