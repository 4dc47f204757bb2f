"""Log-probabilities of prompts. BatchGenerator computes no logits of a prompt, so prompts that are to be scored go
through the model here, and their caches on into the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_roster.engine.routed import Routed
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.scores import Scores
from mlx_roster.engine.sequences import Score

#: Logits that are held at a time, in bytes of float32: those of a whole prompt may be many GiB. To find the likeliest
#: takes as much again, and twice that.
MOST_LOGITS = 64 * 2**20

#: Tokens of each prompt that one step takes in: what a cancel or another stream waits for.
MOST_TOKENS = 128


class Unscored(NamedTuple):
    """A prompt to be scored, each token beside the `top` likeliest. `caches` are empty."""

    sequence: int
    ids: Sequence[int]
    top: int
    row: Row
    caches: list[Any]


class ScoredPrompt(NamedTuple):
    """Scores of a prompt's next tokens. With the last of them come `caches`, which hold all tokens but the last."""

    sequence: int
    scores: list[Score]
    caches: list[Any] | None


@dataclass(slots=True)
class _Running:
    """A prompt on its way, of which `taken` tokens have gone through the model."""

    prompt: Unscored
    taken: int = 0

    @property
    def left(self) -> int:
        """Tokens that have not gone through it. The last one need not: nothing in the prompt follows it."""
        return len(self.prompt.ids) - 1 - self.taken


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
        """Take in some tokens of each prompt, and return what is known of them."""
        if not self._running and self._waiting:
            # There is nothing before a prompt's first token to say how likely it is.
            first: list[Score] = [(None, ())]
            begun = self._begin()
            return [ScoredPrompt(one.sequence, first, one.caches if len(one.ids) == 1 else None) for one in begun]
        if not self._running:
            return []
        found = self._advance()
        scored = [
            ScoredPrompt(one.prompt.sequence, scores, None if one.left else self._extracted(index))
            for index, (one, scores) in enumerate(zip(self._running, found, strict=True))
        ]
        self._keep([index for index, one in enumerate(self._running) if one.left])
        return scored

    def _extracted(self, index: int) -> list[Any]:
        return [cache.extract(index) for cache in self._caches[:-1]]

    def _begin(self) -> list[Unscored]:
        """Take some prompts up."""
        begun = [self._waiting.popleft() for _ in range(min(self._width, len(self._waiting)))]
        self._running = [_Running(one) for one in begun if len(one.ids) > 1]
        caches = [[*one.prompt.caches, Rows([one.prompt.row])] for one in self._running]
        self._caches = [each[0].merge(list(each)) for each in zip(*caches, strict=True)]
        return begun

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self._running):
            return
        self._running = [self._running[index] for index in indices]
        if not indices:
            self._caches = []
        for cache in self._caches:
            cache.filter(indices)

    def _advance(self) -> list[list[Score]]:
        """Take in the next tokens. Returns the scores of those that follow each."""
        fit = MOST_LOGITS // (4 * self._vocabulary * len(self._running))
        taken = [min(max(1, min(MOST_TOKENS, fit)), one.left) for one in self._running]
        longest = max(taken)
        ids = np.zeros((len(taken), longest + 1), dtype=np.int32)
        for index, (one, count) in enumerate(zip(self._running, taken, strict=True)):
            ids[index, : count + 1] = one.prompt.ids[one.taken : one.taken + count + 1]
        padding = [longest - count for count in taken]
        if any(padding):
            for cache in self._caches:
                cache.prepare(lengths=taken, right_padding=padding)
        logits = self._model(mx.array(ids[:, :-1]), self._caches)
        # Each token's logits are of the one that follows it.
        scores = Scores(
            logits.flatten(0, 1), mx.array(ids[:, 1:].flatten()), max(one.prompt.top for one in self._running)
        )
        if any(padding):
            for cache in self._caches:
                cache.finalize()
        mx.eval([cache.state for cache in self._caches])
        found: list[list[Score]] = []
        for index, (one, count) in enumerate(zip(self._running, taken, strict=True)):
            following = enumerate(ids[index, 1 : count + 1].tolist(), index * longest)
            found.append([scores.read(place, token, one.prompt.top) for place, token in following])
            one.taken += count
        return found
