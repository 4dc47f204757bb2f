"""The engine: one thread that owns mlx and turns requests into text, step by step."""

from __future__ import annotations

import logging
import queue
import warnings
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

import mlx.core as mx

from mlx_roster.core import Capabilities, Delta, Generation, Measured, ModelSource
from mlx_roster.engine.batch import Admission, Batch, Token
from mlx_roster.engine.lora import Bank
from mlx_roster.engine.prefixes import Prefixes
from mlx_roster.engine.preparing import Adapters, Preparer
from mlx_roster.engine.prompts import Prompts
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row
from mlx_roster.engine.scheduler import Cancel, Fetched, Plan, Rejection, Scheduler, Sequence
from mlx_roster.engine.text import detokenizers
from mlx_roster.errors import AdapterIncompatible, InternalError, RosterError
from mlx_roster.tensors import AdapterReader, Loaded

logger = logging.getLogger(__name__)

#: Seconds without work after which the engine frees what it only keeps for reuse.
LINGER = 0.25

#: Buffers kept for reuse may take a quarter of what is in use, but at least this: they are no part of any estimate.
LEAST_CACHE = 128 * 2**20


class Output(Protocol):
    """Where the engine's events go. All of it is called on the engine's thread, and must not block for long."""

    def step(self, deltas: list[Delta]) -> None:
        """All that one step produced; never empty."""

    def rejected(self, sequence: int, error: RosterError) -> None:
        """A sequence that cannot start, or cannot go on: the last that is said of it."""

    def report(self, measured: Measured) -> None:
        """The engine has nothing to do, and holds this much."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End `run`."""


Command = Sequence | Fetched | Cancel | Rejection | Stop


class Inbox:
    """Commands on their way to the engine's thread, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.put = self._queue.put

    def drain(self, block: bool, timeout: float | None = None) -> list[Command]:
        """All that has come. With `block`, waits for the first; an empty list then means that `timeout` has passed."""
        commands: list[Command] = []
        try:
            if block:
                commands.append(self._queue.get(timeout=timeout))
            while True:
                commands.append(self._queue.get_nowait())
        except queue.Empty:
            return commands


class Engine:
    """One model being served. Made, run and closed on one thread, which then owns mlx; a context manager.

    `submit`, `cancel` and `stop` may be called from any thread.
    """

    def __init__(self, loaded: Loaded, source: ModelSource, output: Output, reader: AdapterReader) -> None:
        routing = Routing()
        self._output = output
        self._source = source
        self._inbox = Inbox()
        self._scheduler = Scheduler(source.max_concurrency, source.max_adapters)
        self._bank = Bank(loaded.model, routing, source.max_adapters)
        self._prefixes = Prefixes(source.prompt_cache_entries, source.prompt_cache_bytes)
        stop_tokens = loaded.tokenizer.eos_token_ids
        self._batch = Batch(loaded.model, routing, stop_tokens, source.max_concurrency, self._prefixes)
        marking = self._prefixes.keeps and not self._batch.cuttable
        prompts = Prompts(loaded.tokenizer, loaded.vocabulary, loaded.context, marking=marking)
        self._adapters = Adapters(reader, self._bank.targets, self._scheduler.slots, source.max_adapters)
        self._preparer = Preparer(prompts, detokenizers(loaded.tokenizer), self._adapters, self._inbox.put)
        self.capabilities = Capabilities(
            vocabulary=loaded.vocabulary,
            context=loaded.context,
            chat=prompts.chat,
            adapters=bool(self._bank.targets) and source.max_adapters > 0,
        )
        self._stopped = False
        self._failed = False
        self._rested = False
        self._closed = False
        self._limit_memory()
        self._preparer.start()

    def __repr__(self) -> str:
        return f"<Engine {self._source.name}: {self._scheduler}>"

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
        """Start a sequence; what becomes of it, refusals too, comes through the output."""
        self._preparer.submit(sequence, generation)

    def cancel(self, sequence: int) -> None:
        """Drop a sequence within one step. Nothing more is said of it; ids that are not there are ignored."""
        self._preparer.cancel(sequence)

    def stop(self) -> None:
        """Make `run` return within one step."""
        self._inbox.put(Stop())

    def measured(self) -> Measured:
        """What mlx holds now, and what adapters may still make of the bank. For the engine's thread."""
        growth = max(0, self._source.bank - self._bank.nbytes)
        return Measured(active=mx.get_active_memory(), cache=mx.get_cache_memory(), growth=growth)

    def run(self) -> None:
        """Serve until stopped. Raises what a step raised if the very next one fails too: the model is beyond help."""
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        """One step, or, with nothing to do, waiting for a command."""
        for command in self._drain():
            self._apply(command)
        plan = self._scheduler.schedule()
        self._publish(self._scheduler.fold(self._step(plan)))

    def _drain(self) -> list[Command]:
        if not self._scheduler.idle:
            return self._inbox.drain(block=False)
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
        self._limit_memory()
        self._rested = True
        self._output.report(self.measured())

    def _apply(self, command: Command) -> None:
        match command:
            case Stop():
                self._stopped = True
            case Rejection():
                # It may have been waiting already, and its adapter have become unreadable.
                self._scheduler.apply(Cancel(command.sequence))
                self._output.rejected(command.sequence, command.error)
            case _:
                self._scheduler.apply(command)

    def _step(self, plan: Plan) -> list[Token]:
        for sequence in plan.fetch:
            if sequence.adapter is not None:
                self._preparer.submit(sequence.id, sequence.adapter.source)
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
        if (excess := mx.get_active_memory() - self._source.memory) > 0:
            self._prefixes.shed(excess)
        return tokens

    def _admission(self, sequence: Sequence) -> Admission:
        row = Row(sequence.slot, sequence.sampling, seed=sequence.sampling.seed or 0)
        # Not by name: what a name means may change.
        key = None if sequence.adapter is None else sequence.adapter.identity
        prefix = self._prefixes.take(key, sequence.prompt.tokens)
        sequence.cached = 0 if prefix is None else prefix.length
        return Admission(sequence.id, sequence.prompt, sequence.max_tokens, row, key, prefix)

    def _place(self, plan: Plan) -> None:
        for sequence in plan.place:
            adapter = sequence.adapter
            if adapter is None or adapter.weights is None:
                continue
            try:
                self._bank.put(sequence.slot, adapter.weights)
            except AdapterIncompatible as error:
                self._adapters.refuse(adapter.identity, error.message)
                told = AdapterIncompatible(f"adapter {adapter.source.name!r}: {error.message}", param="adapters")
                for number in self._scheduler.unplaced(plan, adapter.identity):
                    self._output.rejected(number, told)
        for sequence in (*plan.place, *plan.admit):
            if sequence.adapter is not None:
                # In the bank now: nobody needs the tensors they came from.
                sequence.adapter = replace(sequence.adapter, weights=None)

    def _publish(self, deltas: list[Delta]) -> None:
        if deltas:
            self._output.step(deltas)

    def _recover(self, error: Exception) -> None:
        """Give up all that ran, and begin again with an empty batch: a second failure in a row ends the engine."""
        if self._failed:
            raise error
        self._failed = True
        logger.error("a step failed", exc_info=error)
        abandoned = self._scheduler.abandon()
        self._batch.reset()
        # It may have been memory that was short; and of the last entries nobody knows whether they were computed.
        self._prefixes.clear()
        self._limit_memory()
        for number in abandoned:
            self._output.rejected(number, InternalError("the generation failed; other requests go on"))

    def _limit_memory(self) -> None:
        """Hold mlx to the budget. After each new batch: BatchGenerator sets a wired limit of its own."""
        most = self._source.memory
        mx.set_memory_limit(most)
        mx.set_cache_limit(max(mx.get_active_memory() // 4, LEAST_CACHE))
        if mx.metal.is_available():
            mx.set_wired_limit(min(most, int(mx.device_info()["max_recommended_working_set_size"])))
