"""Speculative decoding of a sequence that is alone: a small model drafts, the large one checks many tokens in one pass.

What is said is what the large model says by itself: each token is drawn as in a batch, by the same sampler with the
same noise, and a drafted one is kept only where it is the very token that was drawn in its place. The draft is drawn
with that noise, too: so it is right in sampled answers about as often as in greedy ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import trim_prompt_cache

from mlx_roster.core import FinishReason
from mlx_roster.engine.caches import leaves
from mlx_roster.engine.prefixes import Prefix
from mlx_roster.engine.routed import PREFILL_TOKENS, Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler
from mlx_roster.tensors import Draft


class Drafting(NamedTuple):
    """What drafts for a sequence, and how many tokens at a time; at least 1."""

    name: str
    draft: Draft
    at_once: int

    @property
    def key(self) -> str:
        """Whose caches those of the draft model are; no adapter has such an identity."""
        return f"draft {self.name}"

    def fits(self, length: int) -> bool:
        """Whether a sequence of so many tokens is not too long for the draft model."""
        return self.draft.context is None or length + self.at_once <= self.draft.context


class Large(NamedTuple):
    """The model that is drafted for, and how its batch draws tokens. `vocabulary` is the size of its logits."""

    routed: Routed
    routing: Routing
    sampler: Sampler
    vocabulary: int


class Course(NamedTuple):
    """A sequence on its way: what a Speculation begins with, and what a batch goes on with.

    `tokens` are the prompt's and those of the answer so far, and `prefix` has some of them, never the last. `row` only
    samples; its draws are those of the answer so far. At most `left` tokens are still to come.
    """

    tokens: list[int]
    prefix: Prefix
    row: Row
    left: int


class Speculation:
    """One sequence that is drafted for. For the engine's thread.

    `prefix` has some of its tokens for the draft model, never the last. Both models' caches can be cut back. One of
    `stop_tokens` ends it.
    """

    def __init__(
        self, large: Large, drafting: Drafting, course: Course, prefix: Prefix, stop_tokens: Collection[int]
    ) -> None:
        self._engine = large
        self._draft = drafting.draft
        self._count = drafting.at_once
        self._stop_tokens = stop_tokens
        self._tokens = list(course.tokens)
        self._row = course.row
        self._drawn = course.row.draws
        self._left = course.left
        #: Of the tokens drafted in the last step, how many were what the model itself drew.
        self.accepted = self.rejected = 0
        self._rows = Rows([replace(course.row)])
        self._large = _Side(self._computed, course.prefix)
        self._small = _Side(self._guessed, prefix)

    @property
    def nbytes(self) -> int:
        """Bytes of both models' caches."""
        return self._large.nbytes + self._small.nbytes

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what has been said."""
        return len(self._tokens)

    @property
    def course(self) -> Course:
        """What is left of it: nothing of this may be used any more."""
        row = replace(self._row, draws=self._drawn)
        return Course(self._tokens, self._large.prefix, row, self._left)

    @property
    def drafted(self) -> tuple[list[int], Prefix]:
        """The tokens that the draft model's caches hold, and these."""
        prefix = self._small.prefix
        return self._tokens[: prefix.length], prefix

    def step(self) -> list[tuple[int, FinishReason | None]]:
        """The next tokens, at least one, of which the last may be the end; none while the prompt is taken in."""
        last = len(self._tokens) - 1
        # All right, and the draft model lacks two of them: that many are no prompt.
        behind = [side for side in (self._large, self._small) if side.held < last - 1]
        for side in behind:
            side.take_in(self._tokens[side.held : min(side.held + PREFILL_TOKENS, last)])
        return [] if behind else self._decode()

    def _decode(self) -> list[tuple[int, FinishReason | None]]:
        count = min(self._count, self._left - 1)
        length = len(self._tokens)
        guesses = self._guess(count)
        behind = mx.array(self._tokens[self._large.held :], dtype=mx.uint32)
        logits = self._large(mx.concatenate([behind, *guesses]))[-count - 1 :]
        drawn = self._draw(logits, self._drawn)
        both: Any = mx.concatenate([*guesses, drawn.astype(mx.uint32)]).tolist()
        agreed = _agreed(both[:count], both[count:])
        said = self._said(agreed)
        self.accepted = min(len(agreed) - 1, len(said))
        self.rejected = count - self.accepted
        self._large.cut(length + len(said) - 1)
        self._small.cut(length + len(said) - 1)
        return said

    def _guess(self, count: int) -> list[mx.array]:
        """The next tokens as the draft model has them, (1,) each, one after the other."""
        given = mx.array(self._tokens[self._small.held :], dtype=mx.uint32)
        guesses = []
        for index in range(count):
            given = self._draw(self._small(given)[-1:], self._drawn + index).astype(mx.uint32)
            # The next pass is built while this one is computed.
            mx.async_eval(given)  # type: ignore[no-untyped-call]
            guesses.append(given)
        return guesses

    def _said(self, fresh: list[int]) -> list[tuple[int, FinishReason | None]]:
        """Count what has come, up to what ends the sequence."""
        said: list[tuple[int, FinishReason | None]] = []
        for token in fresh:
            self._tokens.append(token)
            self._drawn += 1
            self._left -= 1
            finish: FinishReason | None = "length" if self._left == 0 else None
            said.append((token, "stop" if token in self._stop_tokens else finish))
            if said[-1][1] is not None:
                break
        return said

    def _draw(self, logits: mx.array, draws: int) -> mx.array:
        """Draw a token of each row of (n, V) logits, which follow each other, the first of them after `draws` draws."""
        routing = self._engine.routing
        routing.rows = Rows([replace(self._row, draws=draws + index) for index in range(logits.shape[0])])
        routing.logits = logits[:, None]
        return self._engine.sampler(logits)

    def _computed(self, ids: mx.array, caches: list[Any]) -> mx.array:
        return self._engine.routed(ids[None], [*caches, self._rows])[0]

    def _guessed(self, ids: mx.array, caches: list[Any]) -> mx.array:
        """The draft model's logits, as wide as the large one's: both may have more than the tokenizer has tokens."""
        vocabulary = self._draft.vocabulary
        logits: mx.array = self._draft.model(mx.minimum(ids, vocabulary - 1)[None], cache=caches)[0]
        missing = self._engine.vocabulary - vocabulary
        if missing > 0:
            return mx.pad(logits, [(0, 0), (0, missing)], constant_values=mx.array(-mx.inf, dtype=logits.dtype))
        return logits[:, : self._engine.vocabulary]


class _Side:
    """One of the two models: its caches hold the first `held` of the sequence's tokens.

    `compute` takes (n,) ids and caches to (n, V) logits.
    """

    def __init__(self, compute: Callable[[mx.array, list[Any]], mx.array], prefix: Prefix) -> None:
        self._compute = compute
        self.held, self._caches = prefix

    def __call__(self, ids: mx.array) -> mx.array:
        self.held += ids.size
        return self._compute(ids, self._caches)

    def take_in(self, tokens: list[int]) -> None:
        """Nothing is wanted but the caches."""
        self(mx.array(tokens, dtype=mx.uint32))
        mx.eval([cache.state for cache in leaves(self._caches)])

    def cut(self, length: int) -> None:
        if self.held > length:
            trim_prompt_cache(self._caches, self.held - length)
            self.held = length

    @property
    def prefix(self) -> Prefix:
        return Prefix(self.held, self._caches)

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in leaves(self._caches))


def _agreed(guesses: list[int], drawn: list[int]) -> list[int]:
    """Of the tokens drawn, those that follow right guesses, and the first that does not."""
    right = next((index for index, guess in enumerate(guesses) if guess != drawn[index]), len(guesses))
    return drawn[: right + 1]
