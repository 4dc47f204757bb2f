"""Log-probabilities of prompts. BatchGenerator computes no logits of a prompt, so prompts that are to be scored go
through the model here, and their caches on into the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_roster.engine.routed import Routed
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sequences import Score

#: Logits that are held at a time, in bytes of float32: those of a whole prompt may be many GiB.
MOST_LOGITS = 256 * 2**20

#: Tokens of each prompt that one step takes in: what a cancel or another stream waits for.
MOST_TOKENS = 512


class Unscored(NamedTuple):
    """A prompt to be scored, each token beside the `top` likeliest. `caches` are empty."""

    sequence: int
    ids: Sequence[int]
    top: int
    row: Row
    caches: list[Any]


class ScoredPrompt(NamedTuple):
    """One score for each of the prompt's tokens. `caches` hold all tokens but the last."""

    sequence: int
    scores: list[Score]
    caches: list[Any]


@dataclass(slots=True)
class _Running:
    """A prompt on its way: the scores of its tokens so far. The first has none."""

    prompt: Unscored
    scores: list[Score] = field(default_factory=lambda: [(None, ())])

    @property
    def left(self) -> int:
        """Tokens that have not gone through the model. The last one need not: nothing in the prompt follows it."""
        return len(self.prompt.ids) - len(self.scores)


class Scoring:
    """Prompts that are being scored, up to `width` together. For the engine's thread."""

    def __init__(self, model: Routed, vocabulary: int, width: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._width = width
        self._waiting: deque[Unscored] = deque()
        self._running: list[_Running] = []
        self._caches: list[Any] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches of all prompts that are on their way."""
        return sum(cache.nbytes for cache in self._caches)

    def add(self, prompt: Unscored) -> None:
        """Score a prompt: it comes back from a later `step`."""
        self._waiting.append(prompt)

    def drop(self, sequences: Collection[int]) -> None:
        """Let some go."""
        self._waiting = deque(one for one in self._waiting if one.sequence not in sequences)
        self._keep([index for index, one in enumerate(self._running) if one.prompt.sequence not in sequences])

    def clear(self) -> None:
        """Let all go."""
        self._waiting.clear()
        self._running, self._caches = [], []

    def step(self) -> list[ScoredPrompt]:
        """Take in some tokens of each prompt, and return those that are done."""
        if not self._running and (ended := self._begin()):
            return ended
        if self._running:
            self._advance()
        done = [index for index, one in enumerate(self._running) if not one.left]
        ended = [
            ScoredPrompt(
                self._running[index].prompt.sequence,
                self._running[index].scores,
                [cache.extract(index) for cache in self._caches[:-1]],
            )
            for index in done
        ]
        self._keep([index for index in range(len(self._running)) if index not in done])
        return ended

    def _begin(self) -> list[ScoredPrompt]:
        """Take some prompts up, and return those of one token, which are done already."""
        begun = [_Running(self._waiting.popleft()) for _ in range(min(self._width, len(self._waiting)))]
        self._running = [one for one in begun if one.left]
        caches = [[*one.prompt.caches, Rows([one.prompt.row])] for one in self._running]
        self._caches = [each[0].merge(list(each)) for each in zip(*caches, strict=True)]
        return [ScoredPrompt(one.prompt.sequence, one.scores, one.prompt.caches) for one in begun if not one.left]

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self._running):
            return
        self._running = [self._running[index] for index in indices]
        if not indices:
            self._caches = []
        for cache in self._caches:
            cache.filter(indices)

    def _advance(self) -> None:
        fit = MOST_LOGITS // (4 * self._vocabulary * len(self._running))
        taken = [min(max(1, min(MOST_TOKENS, fit)), one.left) for one in self._running]
        longest = max(taken)
        inputs = np.zeros((len(taken), longest + 1), dtype=np.int32)
        for index, (one, count) in enumerate(zip(self._running, taken, strict=True)):
            start = len(one.scores) - 1
            # Each token's logits are of the one that follows it.
            inputs[index, : count + 1] = one.prompt.ids[start : start + count + 1]
        padding = [longest - count for count in taken]
        if any(padding):
            for cache in self._caches:
                cache.prepare(lengths=taken, right_padding=padding)
        logits = self._model(mx.array(inputs[:, :-1]), self._caches)
        most = max(one.prompt.top for one in self._running)
        found = _scored(logits, mx.array(inputs[:, 1:]), most)
        mx.eval(found, [cache.state for cache in self._caches])
        if any(padding):
            for cache in self._caches:
                cache.finalize()
        logprobs, ids, likeliest = (np.array(each) for each in found)
        for index, (one, count) in enumerate(zip(self._running, taken, strict=True)):
            top = one.prompt.top
            for place in range(count):
                pairs = zip(ids[index, place, :top].tolist(), likeliest[index, place, :top].tolist(), strict=True)
                one.scores.append((float(logprobs[index, place]), list(pairs)))


def _scored(logits: mx.array, targets: mx.array, top: int) -> tuple[mx.array, mx.array, mx.array]:
    """Log-probabilities of the targets, and the `top` likeliest ids with theirs, in falling order: (B, n) and
    (B, n, top)."""
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1) - total
    top = min(top, logits.shape[-1])
    if not top:
        empty = mx.zeros((*targets.shape, 0))
        return chosen[..., 0], empty.astype(mx.int32), empty
    ids = mx.argpartition(-logits, kth=top - 1, axis=-1)[..., :top] if top < logits.shape[-1] else mx.argsort(-logits)
    values = mx.take_along_axis(logits, ids, axis=-1) - total
    order = mx.argsort(-values, axis=-1)
    return chosen[..., 0], mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)
