"""A gate: which tokens one sequence may say next. For the engine's thread, which it must not keep waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

Words = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as llguidance has it, and two masks for a model's logits.

    `endings` allows the end of a sequence only; `thoughts` all tokens but that, and but the beginning of a call.
    llguidance's own masks have as many `words` as its vocabulary needs, which is the larger one where a tokenizer has
    tokens that its model has not.
    """

    tokens: LLTokenizer
    words: int
    endings: Words
    thoughts: Words

    @classmethod
    def of(cls, tokens: LLTokenizer, size: int, known: int, eos: list[int], call: list[int]) -> Vocabulary:
        """`known` tokens have a meaning: a model may have more logits than that, and those are never allowed."""
        ends, thoughts = np.zeros(size, dtype=np.bool_), np.arange(size) < known
        ends[eos] = True
        thoughts[eos + call] = False
        return cls(tokens, -(-tokens.vocab_size // 32), _packed(ends), _packed(thoughts))


@dataclass(slots=True)
class Thinking:
    """What a model thinks between, as token ids, and whether it does at the beginning of its answer.

    With `may`, it has not begun to and can, with its first token.
    """

    start: Sequence[int]
    end: Sequence[int]
    now: bool
    may: bool


@dataclass(slots=True)
class Grammar:
    """A grammar that every sequence under it takes a copy of. After a token of `exits` an answer is held to nothing.

    `param` is the request's field that asks for it. Copies share what they have learnt of it, also that it is too
    complex: it is `spent` then.
    """

    matcher: LLMatcher
    exits: frozenset[int]
    param: str
    spent: bool = False


class GrammarGate:
    """One constrained sequence. Thoughts may be anything, but must come to an end; all that follows fits the grammar.

    `error` is set once the grammar has become too complex to be followed: the sequence can only be ended then.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, thinking: Thinking | None) -> None:
        self.error: str | None = None
        self.param = grammar.param
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._vocabulary = vocabulary
        self._exited = False
        self._ended = False
        self._thinks = thinking is not None and thinking.now
        self._opening = thinking.start[0] if thinking is not None and thinking.may else None
        self._closing = list(thinking.end) if thinking is not None else []
        self._thought: list[int] = []

    def advance(self, token: int) -> None:
        """The sequence has drawn `token`. Does nothing once it has ended."""
        if self._exited or self._ended or self.error is not None:
            return
        if self._thinks:
            self._think(token)
        elif token == self._opening:
            self._thinks = True
        elif token in self._grammar.exits:
            self._exited = True
        else:
            self._ended = self._matcher.is_stopped() or not self._matcher.consume_token(token)
            self._check()
        self._opening = None

    def mask(self, words: Words) -> bool:
        """Fill in which tokens may be next, one bit each; False if all may."""
        if self._exited:
            return False
        if self._thinks:
            words[:] = self._vocabulary.thoughts
        elif self._ended or self.error is not None:
            words[:] = self._vocabulary.endings
        else:
            self._fill(words)
        return True

    def _think(self, token: int) -> None:
        self._thought = [*self._thought, token][-len(self._closing) :]
        self._thinks = self._thought != self._closing

    def _fill(self, words: Words) -> None:
        target = words if len(words) == self._vocabulary.words else np.empty(self._vocabulary.words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(target.ctypes.data, target.nbytes)
        if target is not words:
            words[:] = target[: len(words)]
        self._check()
        if self.error is not None:
            words[:] = self._vocabulary.endings
        elif self._opening is not None:
            words.view(np.uint32)[self._opening // 32] |= np.uint32(1 << self._opening % 32)

    def _check(self) -> None:
        if self._matcher.is_error():
            self.error = "the grammar of this answer became too complex to be followed"
            self._grammar.spent = True


def _packed(allowed: npt.NDArray[np.bool_]) -> Words:
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)
