"""Which sequences are drafted for, and the batch that they leave for it and come back to: docs/api.md has the rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import trim_prompt_cache

from mlx_roster.engine.batch import Admission, Batch
from mlx_roster.engine.caches import make_caches
from mlx_roster.engine.prefixes import Prefix, Prefixes, cuttable
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.sampling import Sampler
from mlx_roster.engine.sequences import Sequence, Token
from mlx_roster.engine.speculative import Course, Drafting, Large, Speculation
from mlx_roster.tensors import Draft

#: More at a time are hardly ever all right, and each takes a row of logits.
MOST_DRAFTED = 16

#: Steps for which a sequence must have been alone again before it is drafted for again: coming and going costs a step.
PATIENCE = 8


class Drafts:
    """The draft models of one model, and the rule. `usable`: the model's own caches can be cut back."""

    def __init__(self, drafts: Mapping[str, Draft], usable: bool) -> None:
        self._first = next(iter(drafts), None)
        self._usable = {name: draft for name, draft in drafts.items() if usable and cuttable(make_caches(draft.model))}

    def wanted(self, sequence: Sequence) -> Drafting | None:
        """What drafts for a sequence while it is alone; None where nothing can, or nothing is to."""
        name = self._first if sequence.draft is None else sequence.draft
        draft = None if name is None else self._usable.get(name)
        if name is None or draft is None or not _plain(sequence):
            return None
        at_once = draft.tokens if sequence.draft_tokens is None else min(sequence.draft_tokens, MOST_DRAFTED)
        return Drafting(name, draft, at_once) if at_once > 0 else None


def _plain(sequence: Sequence) -> bool:
    """Whether a token hangs on nothing but the base's logits in its place, and nothing more is to be known of it."""
    sampling = sequence.sampling
    edits = (
        sampling.logit_bias,
        sampling.repetition_penalty != 1,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.xtc_probability,
        sampling.min_tokens,
    )
    others = (sequence.adapter, sequence.gate, sequence.fork, sequence.top)
    return sequence.max_tokens > 0 and not any(edits) and all(one is None for one in others) and not sequence.scores


class _Alone(NamedTuple):
    """The sequence that is drafted for, as it was admitted."""

    admission: Admission
    drafting: Drafting
    speculation: Speculation


class DraftedBatch(Batch):
    """A Batch whose sequence is drafted for while it is the only one, where its Admission says by what."""

    def __init__(
        self,
        model: Module,
        routing: Routing,
        sampler: Sampler,
        stop_tokens: Collection[int],
        max_concurrency: int,
        prefixes: Prefixes,
        make_caches: Callable[[], list[Any]],
        vocabulary: int,
    ) -> None:
        super().__init__(model, routing, sampler, stop_tokens, max_concurrency, prefixes, make_caches, vocabulary)
        self._large = Large(self._routed, routing, sampler, vocabulary)
        self._ends = frozenset(stop_tokens)
        self._alone: _Alone | None = None
        #: Steps for which the batch has had the same sequence, and no other.
        self._steps_alone = 0

    @property
    def nbytes(self) -> int:
        """See Batch."""
        return super().nbytes + (self._alone.speculation.nbytes if self._alone else 0)

    def reset(self) -> None:
        """See Batch."""
        self._alone = None
        super().reset()

    def drop(self, sequences: Several[int]) -> None:
        """See Batch."""
        if self._alone is not None and self._alone.admission.sequence in sequences:
            self._end(self._alone)
        super().drop(sequences)

    def step(self, admit: Several[Admission]) -> list[Token]:
        """See Batch. Of a sequence that is drafted for there may be several tokens."""
        alone = self._alone
        if alone is not None and (admit or not alone.drafting.fits(alone.speculation.length)):
            admit = [self._parted(alone), *admit]
        elif not admit and self._steps_alone >= PATIENCE:
            admit = self._taken_out()
        if self._alone is None and len(admit) == 1 and not self._running and not self._unscored:
            self._begin(admit[0])
        return self._joint(admit) if self._alone is None else self._advanced(self._alone)

    def _joint(self, admit: Several[Admission]) -> list[Token]:
        """A step of the batch."""
        tokens = super().step(admit)
        alone = tokens and not admit and len(self._running) == 1 and not self._unscored
        self._steps_alone = self._steps_alone + 1 if alone else 0
        return tokens

    def _begin(self, admission: Admission) -> None:
        """Draft for it from here on, if it is to be."""
        drafting, prompt = admission.drafting, admission.prompt
        if drafting is None or not drafting.fits(len(prompt)):
            return
        prefix = admission.prefix or Prefix(0, self._make_caches())
        drafted = self._prefixes.take(drafting.key, prompt.tokens) or Prefix(0, make_caches(drafting.draft.model))
        course = Course(prompt.ids, prefix, admission.row, admission.max_tokens)
        ends = frozenset() if admission.endless else self._ends
        speculation = Speculation(self._large, drafting, course, drafted, ends)
        self._alone = _Alone(admission._replace(prefix=None), drafting, speculation)

    def _advanced(self, alone: _Alone) -> list[Token]:
        """A step of the sequence that is drafted for."""
        with mx.stream(self._generator.stream):
            said = alone.speculation.step()
        if said and said[-1][1] is not None:
            self._end(alone)
        tokens = [Token(alone.admission.sequence, token, finish) for token, finish in said]
        if tokens:
            tokens[0] = tokens[0]._replace(accepted=alone.speculation.accepted, rejected=alone.speculation.rejected)
        return tokens

    def _end(self, alone: _Alone) -> None:
        """It is over: what was computed is there for the next."""
        self._alone = None
        # The draft's first: where there is room for one, it is the model's own.
        self._put(alone.drafting.key, *alone.speculation.drafted)
        course = alone.speculation.course
        self._put(alone.admission.key, course.tokens, course.prefix)

    def _parted(self, alone: _Alone) -> Admission:
        """What is left of it, for the batch to go on with."""
        self._alone = None
        tokens, prefix, row, left = alone.speculation.course
        # It may come back, or another turn follow.
        self._put(alone.drafting.key, *alone.speculation.drafted)
        return alone.admission._replace(
            prompt=Prompt.of(tokens), max_tokens=left, row=row, prefix=prefix if prefix.length else None
        )

    def _taken_out(self) -> list[Admission]:
        """Out of the batch, what has been alone there for a while and can be drafted for: as if it were new."""
        self._steps_alone = 0
        uid, running = next(iter(self._running.items()), (0, None))
        one = None if running is None else running.admission
        if one is None or one.drafting is None or not one.drafting.fits(len(one.prompt)):
            return []
        with mx.stream(self._generator.stream):
            caches, tokens = self._generator.remove([uid], return_prompt_caches=True)[uid]
            # The last token that was said is in them, for a draw that nobody has seen: it is drawn again.
            trim_prompt_cache(caches, 1)
        del self._running[uid], self._uids[one.sequence]
        left = one.max_tokens - (len(tokens) - len(one.prompt))
        row = replace(one.row, draws=one.row.draws - 1)
        prefix = Prefix(len(tokens) - 1, caches[:-1])
        return [one._replace(prompt=Prompt.of(tokens), max_tokens=left, row=row, prefix=prefix)]

    def _put(self, key: str | None, tokens: list[int], prefix: Prefix) -> None:
        with mx.stream(self._generator.stream):
            self._prefixes.put(key, np.array(tokens[: prefix.length], dtype=np.int32), prefix.caches)
