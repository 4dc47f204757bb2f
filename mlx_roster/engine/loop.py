"""The engine: one thread that owns mlx and turns requests into text, step by step."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import mlx.core as mx

from mlx_roster.core import Capabilities, Counters, Generation, Limits, Measured, ModelSource
from mlx_roster.engine.batch import Admission, copied
from mlx_roster.engine.caches import batchable, cache_size, make_caches, quantization_for
from mlx_roster.engine.drafting import DraftedBatch, Drafts
from mlx_roster.engine.grammar import Grammars
from mlx_roster.engine.inbox import Command, Inbox, Share, Stop
from mlx_roster.engine.lora import Bank
from mlx_roster.engine.memory import Memory
from mlx_roster.engine.prefixes import Prefix, Prefixes
from mlx_roster.engine.preparing import Adapters, Preparer
from mlx_roster.engine.prompts import Prompts
from mlx_roster.engine.publishing import Output, Publisher
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row
from mlx_roster.engine.sampling import Sampler
from mlx_roster.engine.scheduler import Plan, Scheduler
from mlx_roster.engine.sequences import Cancel, Rejection, Sequence, Token
from mlx_roster.engine.tally import Tally
from mlx_roster.engine.text import Voices, prompt_text, token_bytes
from mlx_roster.errors import AdapterIncompatible, InternalError
from mlx_roster.logs import fields, written
from mlx_roster.tensors import AdapterReader, Loaded

logger = logging.getLogger(__name__)

#: Seconds without work after which the engine frees what it only keeps for reuse.
LINGER = 0.25


class Engine:
    """One model being served. Made, run and closed on one thread, which then owns mlx; a context manager.

    `submit`, `cancel`, `share`, `limit` and `stop` may be called from any thread.
    """

    def __init__(self, loaded: Loaded, source: ModelSource, output: Output, reader: AdapterReader) -> None:
        routing, limits = Routing(), source.limits
        self._output = output
        self._name = source.name
        self._context = loaded.context
        self._inbox = Inbox()
        self._prefixes = Prefixes(limits.prompt_cache_entries, limits.prompt_cache_bytes)
        quantization = quantization_for(loaded.model, source)
        caches = partial(make_caches, loaded.model, quantization)
        self._batchable = batchable(loaded.model, caches)
        if not self._batchable:
            logger.warning("%s is one of mlx-lm's models that take one sequence at a time: others wait", source.name)
        self._batch = self._made_batch(loaded, routing, limits, caches)
        self._drafts = Drafts(loaded.drafts, self._batch.cuttable)
        size = cache_size(loaded.model, quantization)
        self._memory = Memory(source, size, self._prefixes, lambda: self._batch.nbytes)
        spell = token_bytes(loaded.tokenizer)
        self._scheduler = Scheduler(self._together(limits), source.max_adapters, self._memory.room, spell)
        self._bank = Bank(loaded.model, routing, source.max_adapters)
        slots = self._scheduler.slots if self._bank.targets else None
        self._tally = Tally(self._scheduler, slots, self._memory, self._prefixes, lambda: self._batch.nbytes)
        self._publisher = Publisher(output, self._scheduler, self._tally)
        self._prompts = Prompts(
            loaded.tokenizer,
            loaded.vocabulary,
            self._shortest(limits.max_context),
            marking=self._marking,
            chat_template=source.chat_template,
            template_args=source.template_args,
        )
        self._adapters = Adapters(reader, self._bank.targets, self._scheduler.slots, source.max_adapters)
        self._preparer = Preparer(
            self._prompts,
            Voices(loaded.tokenizer),
            partial(prompt_text, loaded.tokenizer),
            Grammars(loaded.tokenizer, loaded.vocabulary),
            self._adapters,
            self._inbox.put,
        )
        self.capabilities = self._capable(loaded, source)
        self._stopped = self._failed = self._rested = self._closed = False
        self._turning: float | None = None
        self._memory.hold()
        self._preparer.start()

    def _made_batch(
        self, loaded: Loaded, routing: Routing, limits: Limits, caches: Callable[[], list[Any]]
    ) -> DraftedBatch:
        stop_tokens = sorted(loaded.tokenizer.eos_token_ids)
        # What XTC must not take: the ends of lines and of the answer would never come.
        kept = {*stop_tokens, *loaded.tokenizer.encode("\n", add_special_tokens=False)}
        return DraftedBatch(
            loaded.model,
            routing,
            Sampler(routing, stop_tokens, sorted(kept)),
            stop_tokens,
            self._together(limits),
            self._prefixes,
            caches,
            loaded.vocabulary,
        )

    def _capable(self, loaded: Loaded, source: ModelSource) -> Capabilities:
        return Capabilities(
            vocabulary=loaded.vocabulary,
            context=self._shortest(source.limits.max_context),
            adapters=bool(self._bank.targets) and source.max_adapters > 0,
            template=self._prompts.variables,
            generation=dict(loaded.generation),
            drafts=tuple(loaded.drafts),
        )

    def __repr__(self) -> str:
        return f"<Engine {self._name}: {self._scheduler}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=1)

    def close(self) -> None:
        """End the preparing threads. Nothing may be submitted any more."""
        self._closed = True
        self._preparer.close()
        self._prefixes.clear()
        self._batch.close()

    def submit(self, sequence: int, generation: Generation) -> None:
        """Start sequences, numbered from `sequence` on. What becomes of them comes through the output, refusals too."""
        self._preparer.submit(sequence, generation)

    def cancel(self, sequence: int) -> None:
        """Drop a sequence within one step. Nothing more is said of it; ids that are not there are ignored."""
        self._preparer.cancel(sequence)

    def share(self, size: int) -> None:
        """Take so many bytes from now on. Past that the prompt cache goes, and no sequence is let in beside others."""
        self._inbox.put(Share(size))

    def limit(self, limits: Limits) -> None:
        """Live by these limits from now on; what runs is not disturbed. Adapters are pinned by their next use."""
        self._inbox.put(limits)

    def stop(self) -> None:
        """Make `run` return within one step."""
        self._inbox.put(Stop())

    def measured(self) -> Measured:
        """What is in use now, to be told. For the engine's thread."""
        return self._memory.measured()

    def counters(self) -> Counters:
        """What has been counted by now. From any thread."""
        return self._tally.counters()

    @property
    def awaited(self) -> float | None:
        """Since when one of its threads has been at one thing, or has had something to begin with, the longest of all;
        in `time.monotonic()`, None where there is nothing to do. From any thread.

        One step is one thing, however much of a prompt it takes in, and so is one request's preparation.
        """
        # In the order in which requests go: what leaves one place is in the next one by then.
        every = (self._preparer.awaited, self._inbox.since, self._turning)
        return min((since for since in every if since is not None), default=None)

    def run(self) -> None:
        """Serve until stopped. Raises what a step raised if the very next one fails too: the model is beyond help."""
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        """One step, or, with nothing to do, waiting for a command."""
        commands = self._drain()
        # With nothing that is new, and nothing that runs, to go round once more is not to get any further.
        if commands or self._scheduler.running:
            self._turning = time.monotonic()
        for command in commands:
            self._apply(command)
        plan = self._scheduler.schedule()
        self._publisher.publish(self._scheduler.fold(self._step(plan)))

    def _drain(self) -> list[Command]:
        if not self._scheduler.idle:
            return self._inbox.drain(block=False)
        self._turning = None
        if self._rested:
            return self._inbox.drain(block=True)
        commands = self._inbox.drain(block=True, timeout=LINGER)
        if not commands:
            self._rest()
        return commands

    def _rest(self) -> None:
        """Free what was kept for the next step, and say what is left."""
        self._batch.reset()
        mx.clear_cache()
        self._memory.hold()
        self._rested = True
        self._output.counted(self._tally.weighed())
        self._output.report(self.measured())

    def _apply(self, command: Command) -> None:
        match command:
            case Stop():
                self._stopped = True
            case Rejection():
                # It may have been waiting already, and its adapter have become unreadable.
                self._scheduler.apply(Cancel(command.sequence))
                self._publisher.reject(command)
            case Share(size):
                if self._memory.take(size):
                    self._output.report(self.measured())
            case Limits():
                self._limit(command)
            case _:
                self._scheduler.apply(command)

    def _limit(self, limits: Limits) -> None:
        self._scheduler.max_concurrency = self._together(limits)
        self._scheduler.slots.unpin()
        self._batch.limit(self._together(limits))
        self._prefixes.resize(limits.prompt_cache_entries, limits.prompt_cache_bytes)
        self._prompts.limit(self._shortest(limits.max_context), marking=self._marking)
        self._memory.limits = limits
        self._output.report(self.measured())

    def _together(self, limits: Limits) -> int:
        """How many sequences may run at a time."""
        return limits.max_concurrency if self._batchable else 1

    def _shortest(self, max_context: int | None) -> int | None:
        """The context of the model, or this where it is shorter."""
        return min((length for length in (self._context, max_context) if length is not None), default=None)

    @property
    def _marking(self) -> bool:
        """Whether the caches of prompts are kept at chosen places only."""
        return self._prefixes.keeps and not self._batch.cuttable

    def _step(self, plan: Plan) -> list[Token]:
        for sequence in plan.fetch:
            if sequence.adapter is not None:
                self._preparer.fetch(sequence.id, sequence.adapter.source, sequence.request)
        if self._scheduler.idle and not plan.drop:
            return []
        self._rested = False
        try:
            self._place(plan)
            self._batch.drop(plan.drop)
            tokens = self._batch.step([self._admission(sequence) for sequence in plan.admit])
        except Exception as error:  # noqa: BLE001 - thread boundary: mlx and models raise what they like
            self._recover(error)
            return []
        self._failed = False
        self._tally.steps += 1
        # A step that only takes in prompts says nothing: so that it is known to go on, now and then it does.
        if self._memory.watch() or (not tokens and self._memory.silent):
            self._output.report(self.measured())
        return tokens

    def _admission(self, sequence: Sequence) -> Admission:
        sampling = sequence.sampling
        row = Row(
            sequence.slot,
            sampling,
            seed=sampling.seed or 0,
            recent=sequence.prompt.tokens[:-1],
            gate=sequence.gate,
            top=sequence.top,
        )
        return Admission(
            sequence=sequence.id,
            prompt=sequence.prompt,
            max_tokens=sequence.max_tokens,
            row=row,
            key=sequence.key,
            prefix=self._prefix(sequence),
            fork=sequence.fork,
            scores=sequence.scores,
            endless=sampling.ignore_eos,
            drafting=self._drafts.wanted(sequence),
        )

    def _prefix(self, sequence: Sequence) -> Prefix | None:
        """What there is of the prompt's caches."""
        fork, prefix = sequence.fork, sequence.prefix
        sequence.prefix = None
        if sequence.scores:
            return None
        if fork is not None and fork.leader != sequence.id and prefix is not None:
            return copied(prefix)
        prefix = prefix or self._prefixes.take(sequence.key, sequence.prompt.tokens)
        sequence.cached = 0 if prefix is None else prefix.length
        self._tally.looked_up(len(sequence.prompt), sequence.cached)
        if fork is not None:
            fork.cached = sequence.cached
        return prefix

    def _place(self, plan: Plan) -> None:
        for sequence in plan.place:
            adapter = sequence.adapter
            if adapter is None or adapter.weights is None:
                continue
            try:
                self._bank.put(sequence.slot, adapter.weights)
                self._tally.placed += 1
            except AdapterIncompatible as error:
                self._adapters.refuse(adapter.identity, error.message)
                told = AdapterIncompatible(f"adapter {adapter.source.name!r}: {error.message}", param="adapters")
                for refused in self._scheduler.unplaced(plan, adapter.identity):
                    self._publisher.reject(Rejection(refused.id, told, refused.request))
        for sequence in (*plan.place, *plan.admit):
            if sequence.adapter is not None:
                # In the bank now: nobody needs the tensors they came from.
                sequence.adapter = replace(sequence.adapter, weights=None)

    def _recover(self, error: Exception) -> None:
        """Give up all that ran, and begin again with an empty batch: a second failure in a row ends the engine."""
        if self._failed:
            raise error
        self._failed = True
        abandoned = self._scheduler.abandon()
        requests = list(dict.fromkeys(sequence.request for sequence in abandoned))
        about = fields(request_ids=requests)
        logger.error("a step failed, of request %s", " ".join(map(written, requests)), exc_info=error, extra=about)
        self._batch.reset()
        # It may have been memory that was short; and of the last entries nobody knows whether they were computed.
        self._prefixes.clear()
        self._memory.hold()
        for sequence in abandoned:
            failure = InternalError("the generation failed; other requests go on")
            self._publisher.reject(Rejection(sequence.id, failure, sequence.request))
