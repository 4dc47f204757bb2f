"""Rows: what each sequence of a batch carries besides its KV caches.

One `Rows` rides as the last entry of every prompt cache that goes through mlx-lm's BatchGenerator. It answers to the
verbs of mlx-lm's caches, so whatever the generator does to its batches (merge, split, filter, extend) happens to the
rows as well, in the same order: row i of a forward pass is row i of its Rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlx_roster.core import Sampling


@dataclass(slots=True)
class Row:
    """One sequence: its adapter's slot in the bank (0 is none), how it samples, and how often it has.

    `seed` must be set for a row that samples; `draws` counts from its first token, whatever batch it was in.
    """

    slot: int
    sampling: Sampling
    seed: int = 0
    draws: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: also with top_k 1, where nothing is left to chance."""
        return self.sampling.temperature <= 0 or self.sampling.top_k == 1


@dataclass(slots=True)
class Draw:
    """Sampling parameters of a batch, on the device. `draws` is advanced by the sampler, in step with the host's count.

    Shapes: (B, 2) for `seeds`, (B, 1) for all else. `sorts`: some row cuts off tokens. `mixed`: some row is greedy.
    """

    greedy: mx.array
    temperature: mx.array
    top_p: mx.array
    top_k: mx.array
    min_p: mx.array
    seeds: mx.array
    draws: mx.array
    sorts: bool
    mixed: bool


class Rows:
    """The rows of one batch. For the engine's thread only.

    Device arrays are made when first asked for after a change of composition, so a batch that only decodes moves
    nothing to the device.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"<Rows slots={[row.slot for row in self._rows]} draws={[row.draws + self._drawn for row in self._rows]}>"
        )

    @cached_property
    def distinct(self) -> frozenset[int]:
        """The slots that rows have, 0 among them where some row has no adapter."""
        return frozenset(row.slot for row in self._rows)

    @cached_property
    def greedy(self) -> bool:
        """Whether no row samples."""
        return all(row.greedy for row in self._rows)

    @cached_property
    def single(self) -> int | None:
        """The slot that all rows share, if they do."""
        return next(iter(self.distinct)) if len(self.distinct) == 1 else None

    @cached_property
    def slots(self) -> mx.array:
        """(B,) indices into the bank."""
        return mx.array([row.slot for row in self._rows], dtype=mx.uint32)

    @cached_property
    def draw(self) -> Draw:
        """What the sampler needs of each row."""
        asked = [row.sampling for row in self._rows]
        return Draw(
            greedy=_column([row.greedy for row in self._rows], mx.bool_),
            temperature=_column([1.0 if row.greedy else row.sampling.temperature for row in self._rows], mx.float32),
            # Off is more than all the mass, so that rounding drops no tail.
            top_p=_column([sampling.top_p if sampling.top_p < 1 else 2.0 for sampling in asked], mx.float32),
            # 0 is off: more than any vocabulary holds.
            top_k=_column([sampling.top_k if sampling.top_k > 0 else 2**31 - 1 for sampling in asked], mx.int32),
            min_p=_column([sampling.min_p for sampling in asked], mx.float32),
            seeds=mx.array([_words(row.seed) for row in self._rows], dtype=mx.uint32),
            draws=_column([row.draws for row in self._rows], mx.uint32),
            mixed=any(row.greedy for row in self._rows),
            sorts=any(not row.greedy and _cuts(row.sampling) for row in self._rows),
        )

    def drew(self) -> None:
        """The sampler has drawn one token for every row."""
        self._drawn += 1

    def _changed(self, rows: list[Row]) -> None:
        self._rows = rows
        for name in ("distinct", "greedy", "single", "slots", "draw"):
            self.__dict__.pop(name, None)

    def _settle(self) -> None:
        """Write the draws of this composition into its rows, before the rows part."""
        for row in self._rows:
            row.draws += self._drawn
        self._drawn = 0

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


def _column(values: list[Any], dtype: mx.Dtype) -> mx.array:
    return mx.array(values, dtype=dtype)[:, None]


def _cuts(sampling: Sampling) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0


def _words(seed: int) -> list[int]:
    """Two random-looking words of 32 bits, the same for the same seed, of whatever size and sign."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return [int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")]
