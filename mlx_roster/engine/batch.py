"""The only file that knows mlx-lm's BatchGenerator; tests/engine/test_upstream.py states what it is relied on for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.generate import BatchGenerator, StopSequences

from mlx_roster.engine.prefixes import Prefix, Prefixes, cuttable, kept, recurrent
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.routed import PREFILL_TOKENS, Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler
from mlx_roster.engine.scoring import ScoredPrompt, Scoring, Unscored
from mlx_roster.engine.sequences import Fork, Token
from mlx_roster.engine.speculative import Drafting

#: Prompts that join together.
PREFILL_SEQUENCES = 16

#: Tokens that must have been computed for a prompt's beginning to be kept before the answer is there. It is a copy, and
#: where caches can be cut back it is only for requests that come meanwhile: the answer's own caches serve as well.
LEAST_MARKED = 32
LEAST_WHILE_RUNNING = 256


class Admission(NamedTuple):
    """A sequence to join the batch. `prompt` is not empty; `max_tokens` is 0 only where the prompt is all there is.

    `prefix` are the caches of the prompt's beginning, if they are there already; `key` is whose they are, and whose
    what is computed will be. `fork` gets the prompt's caches if others wait for them. With `scores`, the prompt's
    tokens are scored first, and no prefix is of use. With `endless`, no end-of-sequence token ends it. `drafting` is
    what a `DraftedBatch` does with it while it is alone.
    """

    sequence: int
    prompt: Prompt
    max_tokens: int
    row: Row
    key: str | None = None
    prefix: Prefix | None = None
    fork: Fork | None = None
    scores: bool = False
    endless: bool = False
    drafting: Drafting | None = None


class Running(NamedTuple):
    """What must be known of an admitted sequence. Its caches are kept at `stops`, on the way through the prompt."""

    admission: Admission
    cached: int
    stops: frozenset[int]


class Batch:
    """The sequences being decoded together, whose caches go to `prefixes` when they leave. For the engine's thread.

    `make_caches` gives a new sequence's, and `vocabulary` is how many logits the model has.
    """

    def __init__(
        self,
        model: Module,
        routing: Routing,
        sampler: Sampler,
        stop_tokens: Iterable[int],
        max_concurrency: int,
        prefixes: Prefixes,
        make_caches: Callable[[], list[Any]],
        vocabulary: int,
    ) -> None:
        self._routed = Routed(model, routing)
        self._sampler = sampler
        self._stop_tokens = StopSequences([(token,) for token in stop_tokens])
        self._max_concurrency = max_concurrency
        self._prefixes = prefixes
        self._make_caches = make_caches
        caches = make_caches()
        #: Whether the model's caches can be cut back: if so, they need not be kept at any place in particular.
        self.cuttable = cuttable(caches)
        # Several of mlx-lm's recurrent models (recurrent_gemma, mamba, rwkv7, jamba) let the padding of a shorter
        # prompt run through their state, and answer something else.
        self._prefill_sequences = 1 if recurrent(caches) else PREFILL_SEQUENCES
        self._scoring = Scoring(self._routed, vocabulary, self._prefill_sequences)
        self._unscored: dict[int, Admission] = {}
        self._open()

    def _open(self) -> None:
        self._uids: dict[int, int] = {}
        self._running: dict[int, Running] = {}
        self._generator = BatchGenerator(
            self._routed,
            sampler=self._sampler,
            completion_batch_size=self._max_concurrency,
            prefill_batch_size=min(self._prefill_sequences, self._max_concurrency),
            prefill_step_size=PREFILL_TOKENS,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the caches of all that is here. Looks at each: not for every step."""
        return int(self._generator.prompt_cache_nbytes) + self._scoring.nbytes

    def limit(self, max_concurrency: int) -> None:
        """How many there will be. Fewer only after `reset`: prompts on their way in would be held up meanwhile."""
        self._max_concurrency = max_concurrency
        if max_concurrency > self._generator.completion_batch_size:
            self._generator.completion_batch_size = max_concurrency
            self._generator.prefill_batch_size = min(self._prefill_sequences, max_concurrency)

    def reset(self) -> None:
        """Forget every sequence, and all that was computed for it."""
        self._generator.close()
        self._scoring.clear()
        self._unscored.clear()
        self._open()

    def close(self) -> None:
        """Give back what the generator took from the device's settings."""
        self._generator.close()

    def drop(self, sequences: Sequence[int]) -> None:
        """Let some go; ids that are not there are ignored. What was computed for them is there for the next."""
        if uids := [self._uids.pop(sequence) for sequence in sequences if sequence in self._uids]:
            self._remove(uids)
        if unscored := [sequence for sequence in sequences if self._unscored.pop(sequence, None) is not None]:
            self._scoring.drop(unscored)

    def step(self, admit: Sequence[Admission]) -> list[Token]:
        """Take some in, and return the tokens that are ready. The next ones are being computed by then.

        A step that only takes in prompts returns none.
        """
        tokens = [Token(one.sequence, None, "length") for one in admit if not one.scores and not one.max_tokens]
        joining = [one for one in admit if not one.scores and one.max_tokens]
        if self._unscored or len(joining) + len(tokens) < len(admit):
            with mx.stream(self._generator.stream):
                self._score([one for one in admit if one.scores], joining, tokens)
        if joining:
            self._insert(joining)
        prompts, responses = self._generator.next()
        self._keep_on_the_way([response for response in prompts if response.end_of_segment])
        tokens.extend(self._taken(responses))
        return tokens

    def _taken(self, responses: Sequence[Any]) -> Iterator[Token]:
        for response in responses:
            one = self._running[response.uid].admission
            if response.finish_reason is not None:
                running = self._running.pop(response.uid)
                del self._uids[one.sequence]
                self._keep(running, response.all_tokens, response.prompt_cache)
            score = None if one.row.top is None else one.row.score(response.token)
            yield Token(one.sequence, response.token, response.finish_reason, score)

    def _score(self, admit: Sequence[Admission], joining: list[Admission], tokens: list[Token]) -> None:
        """Take in more of the prompts that are to be scored. Those that are done say so, and join if they go on."""
        for one in admit:
            self._unscored[one.sequence] = one
            caches = self._make_caches()
            self._scoring.add(Unscored(one.sequence, one.prompt.ids, one.row.top or 0, one.row, caches))
        for scored in self._scoring.step():
            one = self._unscored[scored.sequence]
            done = scored.caches is not None
            ends = done and not one.max_tokens
            tokens.append(Token(one.sequence, None, "length" if ends else None, None, scored.scores))
            if done:
                del self._unscored[scored.sequence]
            if done and not ends:
                joining.append(one._replace(prefix=_prefix(one, scored)))

    def _insert(self, admit: Sequence[Admission]) -> None:
        joining = [Running(one, one.prefix.length if one.prefix else 0, self._stops(one)) for one in admit]
        uids = self._generator.insert_segments(
            segments=[_segments(one) for one in joining],
            max_tokens=[one.max_tokens for one in admit],
            caches=[[*(one.prefix.caches if one.prefix else self._make_caches()), Rows([one.row])] for one in admit],
            all_tokens=[one.admission.prompt.ids[: one.cached] for one in joining],
            stop_sequences=[StopSequences() if one.endless else self._stop_tokens for one in admit],
        )
        for uid, one in zip(uids, joining, strict=True):
            self._uids[one.admission.sequence] = uid
            # The batch has copies of its own: what it was made of must not stay for as long as it runs.
            self._running[uid] = one._replace(admission=one.admission._replace(prefix=None))
            fork = one.admission.fork
            if fork is not None and fork.heirs > 0 and one.cached == len(one.admission.prompt) - 1:
                assert one.admission.prefix is not None
                fork.caches = kept(copied(one.admission.prefix))

    def _stops(self, one: Admission) -> frozenset[int]:
        """Where on the way through the prompt its caches are worth keeping."""
        cached = one.prefix.length if one.prefix else 0
        # The generator stops before the last token in any case.
        end = len(one.prompt) - 1
        waited = {end} if one.fork is not None and one.fork.heirs > 0 and cached < end else set()
        if not self._prefixes.keeps:
            return frozenset(waited)
        if self.cuttable:
            return frozenset(waited | ({end} if end - cached >= LEAST_WHILE_RUNNING else set()))
        marks = one.prompt.marks or (end,)
        return frozenset(waited | {mark for mark in marks if mark <= end and mark - cached >= LEAST_MARKED})

    def _keep_on_the_way(self, paused: Sequence[Any]) -> None:
        """`paused` are mlx-lm's responses for sequences that have come to the end of a segment."""
        uids = [
            response.uid
            for response in paused
            if not response.end_of_prompt
            and response.progress[0] + self._running[response.uid].cached in self._running[response.uid].stops
        ]
        if uids:
            for uid, (caches, tokens) in self._generator.extract_cache(uids).items():
                one = self._running[uid]
                fork = one.admission.fork
                if fork is not None and fork.heirs > 0 and len(tokens) == len(one.admission.prompt) - 1:
                    with mx.stream(self._generator.stream):
                        fork.caches = kept(copied(Prefix(len(tokens), caches[:-1])))
                self._keep(one, tokens, caches)

    def _remove(self, uids: Sequence[int]) -> None:
        removed = self._generator.remove(uids, return_prompt_caches=self._prefixes.keeps)
        for uid in uids:
            one = self._running.pop(uid)
            caches, tokens = removed.get(uid, ([], []))
            # One that nothing was computed for still has what it came with.
            if len(tokens) > one.cached:
                self._keep(one, tokens, caches)

    def _keep(self, one: Running, tokens: list[int], caches: list[Any]) -> None:
        """Keep `caches`, which hold `tokens` and end with their Rows."""
        prompt = one.admission.prompt.tokens
        # Of all tokens only the answer's have to be read: there may be very many of the prompt's.
        answer = tokens[len(prompt) :]
        held = np.concatenate([prompt, np.array(answer, dtype=np.int32)]) if answer else prompt[: len(tokens)]
        # Where the caches were made: another stream would have to wait for this one, and this one for it.
        with mx.stream(self._generator.stream):
            self._prefixes.put(one.admission.key, held, caches[:-1])


def copied(prefix: Prefix) -> Prefix:
    """The same caches to be used by another: new arrays over the same buffers, until one of them is written to."""
    return Prefix(prefix.length, copy.deepcopy(prefix.caches))


def _prefix(one: Admission, done: ScoredPrompt) -> Prefix | None:
    """What was computed to score a prompt, if anything."""
    length = len(one.prompt) - 1
    return Prefix(length, done.caches) if length and done.caches is not None else None


def _segments(one: Running) -> list[list[int]]:
    """What is left of the prompt, parted where it is to stop."""
    ids = one.admission.prompt.ids
    ends = [*sorted(one.stops), len(ids)]
    starts = [one.cached, *ends]
    return [ids[start:end] for start, end in zip(starts, ends, strict=False)]
