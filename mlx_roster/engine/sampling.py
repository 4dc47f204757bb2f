"""One sampler for all rows of a batch.

mlx-lm calls a sampler once for a whole batch where all rows share the same object; this one looks up, in the rows
of the forward pass just made, how each of them wants its token. Nothing goes through the rows one by one: those that
need the same are taken together, each with its own parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_roster.engine.cuts import Cuts
from mlx_roster.engine.edits import Edits, edited
from mlx_roster.engine.groups import Group, column
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row
from mlx_roster.engine.scores import Scores

#: Temperatures by which float32 can be divided.
COLDEST, HOTTEST = 1e-6, 1e30
#: Makes another key of a row's, for XTC's coin.
COIN = 0x58544331


class Sampler:
    """Log-probabilities (B, V) to tokens (B,). Called right after the forward pass of the same rows.

    What it really looks at are that pass's raw logits: in half precision several log-probabilities may be the same
    where the logits are not. `stop_tokens` end a sequence; neither these nor `kept` are ever ruled out by XTC.
    """

    def __init__(self, routing: Routing, stop_tokens: Iterable[int] = (), kept: Iterable[int] = ()) -> None:
        self._routing = routing
        self._stops = sorted(set(stop_tokens))
        self._kept = sorted({*self._stops, *kept})
        self._special = lru_cache(maxsize=2)(self._specials)

    def __call__(self, logprobs: mx.array) -> mx.array:
        rows, inputs, logits = self._routing.rows, self._routing.inputs, self._routing.take()
        edits, draw, scored = rows.once(Edits.of), rows.once(Draw.of), rows.once(Scored.of)
        if edits is None:
            tokens = self._tokens(draw, logits)
        elif edits.few:
            tokens = self._tokens(draw, logits)
            # The device is to have that to do while the host looks at what the others may say.
            mx.async_eval(tokens)  # type: ignore[no-untyped-call]
            values = edits(logits, inputs, rows.drawn, self._stopping(logits))
            tokens = edits.group.put(tokens, self._tokens(rows.once(_of_edited), values))
        else:
            values = edits(logits, inputs, rows.drawn, self._stopping(logits))
            tokens = self._tokens(draw, edits.group.put(logits.astype(mx.float32), values))
        if scored is not None:
            scored(logits, tokens)
        rows.drew()
        return tokens

    def _tokens(self, draw: Draw | None, values: mx.array) -> mx.array:
        if draw is None:
            return mx.argmax(values, axis=-1)
        return draw(values, self._special(values.shape[-1])[1])

    def _stopping(self, logits: mx.array) -> mx.array:
        return self._special(logits.shape[-1])[0]

    def _specials(self, vocabulary: int) -> tuple[mx.array, mx.array]:
        """Ids (s,) of end-of-sequence tokens, and which tokens (V,) XTC keeps. Some models name ids they have not."""
        kept = np.zeros(vocabulary, dtype=np.bool_)
        kept[[token for token in self._kept if token < vocabulary]] = True
        return mx.array([token for token in self._stops if token < vocabulary], dtype=mx.int32), mx.array(kept)


@dataclass(slots=True)
class Draw:
    """The rows of a batch that sample, on the device. `draws` is advanced here, in step with the host's count.

    Shapes: (n, 2) for `seeds`, (n, 1) for all else.
    """

    group: Group
    temperature: mx.array
    seeds: mx.array
    draws: mx.array
    cuts: Cuts | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Draw | None:
        """None where all are greedy."""
        group = Group.where([not row.greedy for row in rows])
        if group is None:
            return None
        rows = [rows[index] for index in group.members]
        return cls(
            group,
            column([min(max(row.sampling.temperature, COLDEST), HOTTEST) for row in rows]),
            mx.array([_words(row.seed) for row in rows], dtype=mx.uint32),
            column([row.draws for row in rows], mx.uint32),
            Cuts.of([row.sampling for row in rows]),
        )

    def __call__(self, values: mx.array, kept: mx.array) -> mx.array:
        """A token for each row of (B, V), the likeliest where a row does not sample."""
        chances = self.group.take(values).astype(mx.float32)
        # A row's noise hangs on its seed and its own count of draws only, so neighbours do not change what it draws.
        keys = mx.concatenate([self.seeds[:, :1], self.seeds[:, 1:] ^ self.draws], axis=1)
        self.draws = self.draws + 1
        if self.cuts is not None:
            chances = self.cuts(chances, keys ^ mx.array([COIN, 0], dtype=mx.uint32), kept)
        drawn = mx.argmax(chances / self.temperature + _noise(keys, values.shape[-1]), axis=-1)
        return drawn if self.group.all else self.group.put(mx.argmax(values, axis=-1), drawn)


@dataclass(slots=True)
class Scored:
    """The rows of a batch whose tokens come with log-probabilities, and the most of the likeliest that one wants."""

    group: Group
    rows: list[Row]
    most: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Scored | None:
        """None where nobody wants any."""
        group = Group.where([row.top is not None for row in rows])
        if group is None:
            return None
        rows = [rows[index] for index in group.members]
        return cls(group, rows, max(row.top or 0 for row in rows))

    def __call__(self, logits: mx.array, tokens: mx.array) -> None:
        """Each row is given what is to be known of its token in `tokens` (B,), drawn by these raw logits (B, V)."""
        scores = Scores(self.group.take(logits), self.group.take(tokens), self.most)
        for index, row in enumerate(self.rows):
            row.scores.append((scores, index))


def _of_edited(rows: Sequence[Row]) -> Draw | None:
    return Draw.of([row for row in rows if edited(row)])


def _noise(keys: mx.array, vocabulary: int) -> mx.array:
    """Gumbel noise (n, V): its argmax over log-probabilities is a draw from them."""
    noise: mx.array = mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(keys)
    return noise


def _words(seed: int) -> list[int]:
    """Two random-looking words of 32 bits, the same for the same seed, of whatever size and sign."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return [int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")]
