"""Rows: what each sequence of a batch carries besides its KV caches.

One `Rows` rides as the last entry of every prompt cache that goes through mlx-lm's BatchGenerator. It answers to the
verbs of mlx-lm's caches, so whatever the generator does to its batches (merge, split, filter, extend) happens to the
rows as well, in the same order: row i of a forward pass is row i of its Rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from mlx_roster.core import Sampling
from mlx_roster.engine.penalties import Window
from mlx_roster.engine.scores import Scores

Made = TypeVar("Made")


class Gate(Protocol):
    """What one sequence may say next. Made on any thread, used on the engine's only.

    `error` is set once the grammar has come to nothing: only end-of-sequence tokens are allowed from then on. `param`
    is the request's field at fault then.
    """

    error: str | None
    param: str

    def advance(self, token: int) -> None:
        """The sequence has drawn this. May come once more after an end-of-sequence token, and does nothing then."""

    def mask(self, words: np.ndarray) -> bool:
        """Fill int32 words, ceil(V / 32), all 0 before: a bit is set where a token is allowed. False: all are."""


@dataclass(slots=True)
class Row:
    """One sequence: its adapter's slot in the bank (0 is none), how it samples, and how often it has.

    `seed` must be set for a row that samples; `draws` counts from its first token, whatever batch it was in. `recent`
    are the prompt's tokens without the last, for penalties. With `top`, each draw leaves the scores of so many tokens.
    """

    slot: int
    sampling: Sampling
    seed: int = 0
    draws: int = 0
    recent: np.ndarray | Sequence[int] = ()
    gate: Gate | None = None
    top: int | None = None
    scores: deque[tuple[Scores, int]] = field(default_factory=deque)
    #: Where its last tokens are, once there is one, and at which place.
    window: tuple[Window, int] | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: also with top_k 1, where nothing is left to chance but by XTC."""
        sampling = self.sampling
        return sampling.temperature <= 0 or (sampling.top_k == 1 and sampling.xtc_probability <= 0)

    def last(self) -> np.ndarray | mx.array:
        """The last tokens (w,) that it has seen, those of the prompt among them."""
        if self.window is None:
            return np.asarray(self.recent, dtype=np.int32)
        window, index = self.window
        return window.tokens[index]

    def score(self, token: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of its oldest token not yet asked for, which is `token`, and the likeliest, falling."""
        scores, index = self.scores.popleft()
        return scores.read(index, token, self.top or 0)


class Rows:
    """The rows of one batch. For the engine's thread only.

    Device arrays are made when first asked for after a change of composition, so a batch that only decodes moves
    nothing to the device.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._made: dict[Callable[..., Any], Any] = {}
        #: How often these rows have drawn since that was last written into them.
        self.drawn = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Rows slots={[row.slot for row in self._rows]} draws={[row.draws + self.drawn for row in self._rows]}>"

    @cached_property
    def distinct(self) -> frozenset[int]:
        """The slots that rows have, 0 among them where some row has no adapter."""
        return frozenset(row.slot for row in self._rows)

    @cached_property
    def single(self) -> int | None:
        """The slot that all rows share, if they do."""
        return next(iter(self.distinct)) if len(self.distinct) == 1 else None

    @cached_property
    def slots(self) -> mx.array:
        """(B,) indices into the bank."""
        return mx.array([row.slot for row in self._rows], dtype=mx.uint32)

    def once(self, make: Callable[[Sequence[Row]], Made]) -> Made:
        """What `make` makes of these rows: the same until their composition changes."""
        if make not in self._made:
            self._made[make] = make(self._rows)
        made: Made = self._made[make]
        return made

    def drew(self) -> None:
        """The sampler has drawn one token for every row."""
        self.drawn += 1

    def _changed(self, rows: list[Row]) -> None:
        self._rows = rows
        self._made.clear()
        for name in ("distinct", "single", "slots"):
            self.__dict__.pop(name, None)

    def _settle(self) -> None:
        """Write the draws of this composition into its rows, before the rows part."""
        for row in self._rows:
            row.draws += self.drawn
        self.drawn = 0

    # The verbs of mlx-lm's caches.

    @classmethod
    def merge(cls, caches: Sequence[Rows]) -> Rows:
        """One batch of several, in their order."""
        merged = cls([])
        for cache in caches:
            merged.extend(cache)
        return merged

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows at these positions, in this order."""
        self._settle()
        self._changed([self._rows[index] for index in keep])

    def extend(self, other: Rows) -> None:
        """Append another batch's rows."""
        self._settle()
        other._settle()
        self._changed([*self._rows, *other._rows])

    def extract(self, index: int) -> Rows:
        """A batch of the one row at `index`."""
        self._settle()
        return Rows([self._rows[index]])

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        # mlx-lm splits a batch by copying it and filtering both copies apart, so no row is ever in two that live on.
        self._settle()
        return Rows(self._rows)

    def prepare(self, **padding: Any) -> None:
        """Padding is of no concern to rows."""

    def finalize(self) -> None:
        """Nor is its end."""

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        return count

    def size(self) -> int:
        return 0

    def empty(self) -> bool:
        return not self._rows

    @property
    def state(self) -> list[mx.array]:
        """Nothing that would have to be evaluated."""
        return []

    @property
    def nbytes(self) -> int:
        return 0
