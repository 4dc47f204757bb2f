"""The only file that knows mlx-lm's BatchGenerator; tests/engine/test_upstream.py states what it is relied on for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlx.nn.layers.base import Module
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from mlx_roster.core import FinishReason
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler

#: Prompts joining together, and the tokens of each that one step takes in: what a cancel or another stream waits for.
PREFILL_SEQUENCES = 16
PREFILL_TOKENS = 512


class Token(NamedTuple):
    """One token of one sequence. `finish` is "stop" for an end-of-sequence token, "length" for the last one allowed."""

    sequence: int
    id: int
    finish: FinishReason | None


class Admission(NamedTuple):
    """A sequence to join the batch. `prompt` is not empty; `max_tokens` is at least 1."""

    sequence: int
    prompt: list[int]
    max_tokens: int
    row: Row


class Batch:
    """The sequences being decoded together. For the engine's thread."""

    def __init__(self, model: Module, routing: Routing, stop_tokens: Iterable[int], max_concurrency: int) -> None:
        self._routed = Routed(model, routing)
        self._sampler = Sampler(routing)
        self._stop_tokens = [(token,) for token in stop_tokens]
        self._max_concurrency = max_concurrency
        self._open()

    def _open(self) -> None:
        self._uids: dict[int, int] = {}
        self._sequences: dict[int, int] = {}
        self._generator = BatchGenerator(
            self._routed,
            stop_tokens=self._stop_tokens,
            sampler=self._sampler,
            completion_batch_size=self._max_concurrency,
            prefill_batch_size=min(PREFILL_SEQUENCES, self._max_concurrency),
            prefill_step_size=PREFILL_TOKENS,
        )

    def reset(self) -> None:
        """Forget every sequence, and all that was computed for it."""
        self._generator.close()
        self._open()

    def close(self) -> None:
        """Give back what the generator took from the device's settings."""
        self._generator.close()

    def step(self, drop: Sequence[int], admit: Sequence[Admission]) -> list[Token]:
        """Let some go, take some in, and return the tokens that are ready. The next ones are being computed by then.

        A step that only takes in prompts returns none.
        """
        if drop:
            uids = [self._uids.pop(sequence) for sequence in drop if sequence in self._uids]
            self._generator.remove(uids)
            for uid in uids:
                del self._sequences[uid]
        if admit:
            self._insert(admit)
        tokens = []
        for response in self._generator.next()[1]:
            uid = response.uid
            sequence = self._sequences[uid]
            if response.finish_reason is not None:
                del self._sequences[uid]
                del self._uids[sequence]
            tokens.append(Token(sequence, response.token, response.finish_reason))
        return tokens

    def _insert(self, admit: Sequence[Admission]) -> None:
        uids = self._generator.insert(
            prompts=[one.prompt for one in admit],
            max_tokens=[one.max_tokens for one in admit],
            caches=[[*make_prompt_cache(self._routed.model), Rows([one.row])] for one in admit],
        )
        for uid, one in zip(uids, admit, strict=True):
            self._uids[one.sequence] = uid
            self._sequences[uid] = one.sequence
