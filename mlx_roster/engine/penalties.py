"""Penalties for tokens that have been there already, each row's by its own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_roster.core import Sampling
from mlx_roster.engine.groups import column

#: Repetition penalties by which float32 can be divided are between this and its inverse.
WEAKEST = 1e-6
#: Where a row has not so many tokens yet.
NONE = -1


#: Tokens that a penalty looks at, at most: longer than any context.
MOST = 2**24


def looks(sampling: Sampling) -> int:
    """How many of the last tokens the penalties look at; 0 where there are none."""
    sizes = (
        sampling.repetition_context_size if sampling.repetition_penalty != 1 else 0,
        sampling.presence_context_size if sampling.presence_penalty else 0,
        sampling.frequency_context_size if sampling.frequency_penalty else 0,
    )
    # Of what is this long, all is looked at; and no device has larger numbers for it.
    return min(max(sizes), MOST)


class Window:
    """The last tokens of some rows, on the device: (n, w), the newest last. It grows up to the widest look.

    The newest tokens need not have been computed. What it holds of a row stays here when the row goes elsewhere.
    """

    def __init__(self, tokens: Sequence[np.ndarray | mx.array], sizes: Sequence[int]) -> None:
        """Tokens (w,) of each row, the newest last, and how many of them matter."""
        self._limit = max(sizes)
        wide = max(min(len(one), size) for one, size in zip(tokens, sizes, strict=True))
        padded = []
        for one, size in zip(tokens, sizes, strict=True):
            tail = one[len(one) - min(len(one), size) :]
            # What lies on the device is padded there.
            library = mx if isinstance(tail, mx.array) else np
            padded.append(library.concatenate([library.full((wide - len(tail),), NONE, library.int32), tail]))
        self.tokens = mx.stack([mx.array(one, dtype=mx.int32) for one in padded])

    def append(self, newest: mx.array) -> None:
        """(n, 1): the tokens that come next."""
        self.tokens = mx.concatenate([self.tokens, newest.astype(mx.int32)], axis=-1)[:, -self._limit :]


@dataclass(slots=True)
class Penalties:
    """Of a batch. All arrays are (n, 1); None is what no row has, 1 or 0 what a row has not."""

    window: Window
    repetition: tuple[mx.array, mx.array] | None
    presence: tuple[mx.array, mx.array] | None
    frequency: tuple[mx.array, mx.array] | None

    @classmethod
    def of(cls, samplings: Sequence[Sampling], window: Window) -> Penalties:
        return cls(
            window,
            _sized(
                [
                    (min(max(one.repetition_penalty, WEAKEST), 1 / WEAKEST), one.repetition_context_size)
                    for one in samplings
                ],
                off=1,
            ),
            _sized([(one.presence_penalty, one.presence_context_size) for one in samplings], off=0),
            _sized([(one.frequency_penalty, one.frequency_context_size) for one in samplings], off=0),
        )

    def __call__(self, logits: mx.array, newest: mx.array) -> mx.array:
        """Logits (n, V) in float32, lowered where mlx-lm lowers them. `newest` (n, 1) joins the window first."""
        self.window.append(newest)
        tokens = self.window.tokens
        age = mx.arange(tokens.shape[1] - 1, -1, -1)
        if self.repetition is not None:
            factor, size = self.repetition
            ids = self._seen(age, size)
            held = mx.take_along_axis(logits, ids, axis=-1)
            logits = mx.put_along_axis(logits, ids, mx.where(held < 0, held * factor, held / factor), axis=-1)
        if self.presence is not None:
            loss, size = self.presence
            ids = self._seen(age, size)
            logits = mx.put_along_axis(logits, ids, mx.take_along_axis(logits, ids, axis=-1) - loss, axis=-1)
        if self.frequency is not None:
            loss, size = self.frequency
            counts = (age < size) & (tokens != NONE)
            row = mx.arange(tokens.shape[0])[:, None]
            # Added one by one, whatever the order: all that is added to one token is the same, or 0.
            logits = logits.at[row, mx.maximum(tokens, 0)].add(mx.where(counts, -loss, 0.0))
        return logits

    def _seen(self, age: mx.array, size: mx.array) -> mx.array:
        """(n, w) ids that lie in a context: once more the newest where one does not.

        So that all who write to a token write the same; and where the context is empty, its row's penalty is none.
        """
        tokens = self.window.tokens
        return mx.where((age < size) & (tokens != NONE), tokens, tokens[:, -1:])


def _sized(penalties: Sequence[tuple[float, int]], off: float) -> tuple[mx.array, mx.array] | None:
    held = [penalty if size > 0 else off for penalty, size in penalties]
    if all(penalty == off for penalty in held):
        return None
    return column(held), column([min(size, 2**31 - 1) for _, size in penalties], mx.int32)
