"""What can be done for a request off the step path, on threads of its own: reading adapters, tokenizing, grammars."""

from __future__ import annotations

import hashlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Container, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec

from mlx_roster.core import AdapterSource, Generation, Text
from mlx_roster.engine.prompts import Prompt, Prompts
from mlx_roster.engine.rows import Gate
from mlx_roster.engine.sequences import Adapter, Cancel, Fetched, Fork, Rejection, Sequence
from mlx_roster.engine.text import Voice
from mlx_roster.errors import AdapterIncompatible, InternalError, InvalidRequest, RosterError
from mlx_roster.logs import fields, written
from mlx_roster.tensors import AdapterReader, AdapterWeights, Targets

logger = logging.getLogger(__name__)

#: Adapters that are remembered as being of no use with the model.
MOST_REFUSED = 1024


class Adapters:
    """Turns adapter sources into what sequences carry. For the reading thread, but for `refuse`."""

    def __init__(self, reader: AdapterReader, targets: Targets, resident: Container[str], slots: int) -> None:
        self._reader = reader
        self._targets = targets
        # The engine thread's own table: what it says may be outdated at once, which `Scheduler.schedule` allows for.
        self._resident = resident
        self._slots = slots
        # Many may wait for one adapter: they share its weights, and the last to be admitted frees them.
        self._read: WeakValueDictionary[str, AdapterWeights] = WeakValueDictionary()
        self._refused: dict[str, str] = {}

    def find(self, source: AdapterSource) -> Adapter:
        """The adapter, with its weights unless they are in a slot. Raises AdapterIncompatible."""
        if not self._slots or not self._targets:
            raise AdapterIncompatible("this model takes no adapters", param="adapters")
        identity = self._reader.known(source)
        weights = None if identity is None else self._read.get(identity)
        if identity is None or (weights is None and not self._settled(identity)):
            weights = self._reader.read(source, self._targets)
            identity = weights.identity
            self._read[identity] = weights
        if identity in self._refused:
            raise AdapterIncompatible(f"adapter {source.name!r}: {self._refused[identity]}", param="adapters")
        return Adapter(identity, source, None if identity in self._resident else weights)

    def refuse(self, identity: str, reason: str) -> None:
        """The model cannot run with this adapter, and never will. From the engine's thread."""
        if len(self._refused) >= MOST_REFUSED:
            self._refused.pop(next(iter(self._refused)))
        self._refused[identity] = reason

    def _settled(self, identity: str) -> bool:
        """Whether the adapter's weights are not needed."""
        return identity in self._resident or identity in self._refused


class Gates(Protocol):
    """Where the grammars of answers come from. Compiling one may take a second."""

    def wanted(self, generation: Generation) -> bool:
        """Whether the answer is to follow one."""

    def gate(self, generation: Generation, prompt_ids: list[int]) -> Gate | None:
        """For one sequence. Raises InvalidRequest."""


@dataclass(slots=True)
class _Job:
    """What is submitted, and what it has come to: sequences from `number` on."""

    number: int
    generation: Generation
    adapter: Adapter | None = None
    prompt: Prompt | None = None
    max_tokens: int = 0

    @property
    def numbers(self) -> range:
        return range(self.number, self.number + self.generation.n)


class Preparer:
    """Three threads that prepare requests, and put them, or why not, into the engine's inbox.

    One reads adapters, one compiles grammars, each in order; the third does all else, so that a plain request waits for
    neither. A Cancel overtakes: it does not wait for what is being prepared. Open from `start` to `close`. `voices`
    makes what turns a sequence's tokens into text, and `read_back` says what the tokens of a prompt do.
    """

    def __init__(
        self,
        prompts: Prompts,
        voices: Callable[[Generation, Several[int]], Voice],
        read_back: Callable[[Several[int]], str],
        gates: Gates,
        adapters: Adapters,
        put: Callable[[Sequence | Fetched | Cancel | Rejection], None],
    ) -> None:
        self._prompts = prompts
        self._voices = voices
        self._read_back = read_back
        self._gates = gates
        self._adapters = adapters
        self._put = put
        self._unread: queue.SimpleQueue[_Job | tuple[int, AdapterSource, str] | None] = queue.SimpleQueue()
        self._unsaid: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ungated: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: Submitted and not yet in the inbox; False once cancelled.
        self._wanted: dict[int, bool] = {}
        #: When each thread that is at work began with what it is at, and when anything last began or ended.
        self._begun: dict[str, float] = {}
        self._moved = 0.0
        self._threads = [
            threading.Thread(target=_until_done, args=(self._read_one,), name="reader", daemon=True),
            threading.Thread(target=_until_done, args=(self._prepare_one,), name="preparer", daemon=True),
            threading.Thread(target=_until_done, args=(self._gate_one,), name="compiler", daemon=True),
        ]

    def start(self) -> None:
        """Begin. Called once."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End after the jobs in hand; what still waits is dropped."""
        with self._lock:
            self._wanted.clear()
        self._unread.put(None)
        self._unsaid.put(None)
        self._ungated.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, number: int, generation: Generation) -> None:
        """Prepare a request's sequences, numbered from `number` on. From any thread."""
        job = _Job(number, generation)
        with self._lock:
            self._wanted.update(dict.fromkeys(job.numbers, True))
            self._moved = time.monotonic()
        if generation.adapter is not None:
            self._unread.put(job)
        else:
            self._unsaid.put(job)

    def fetch(self, number: int, source: AdapterSource, request: str = "") -> None:
        """Read again the adapter of a sequence of `request` that waits. From any thread."""
        with self._lock:
            self._wanted[number] = True
            self._moved = time.monotonic()
        self._unread.put((number, source, request))

    def cancel(self, number: int) -> None:
        """Drop a sequence, wherever it is by now. From any thread."""
        with self._lock:
            if number in self._wanted:
                self._wanted[number] = False
            self._put(Cancel(number))

    @property
    def awaited(self) -> float | None:
        """Since when the thread that has been at one request for the longest has been at it, in `time.monotonic()`;
        None where there is nothing to prepare. From any thread."""
        with self._lock:
            if not self._wanted and not self._begun:
                return None
            return min(self._begun.values(), default=self._moved)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        name = threading.current_thread().name
        with self._lock:
            self._begun[name] = self._moved = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._moved = time.monotonic()
                del self._begun[name]

    # One job in each call: what a thread that waits for the next one still referred to would stay in memory.

    def _read_one(self) -> bool:
        job = self._unread.get()
        if job is None:
            return False
        with self._at_work():
            match job:
                case _Job() if job.generation.adapter is not None and self._alive(job):
                    if self._attempted(job.numbers, job.generation.request, lambda: self._read(job)):
                        self._unsaid.put(job)
                case (number, source, request) if self._wanted.get(number):
                    self._attempted(
                        range(number, number + 1),
                        request,
                        lambda: self._deliver(number, Fetched(number, self._adapters.find(source))),
                    )
                case (number, _, _):
                    self._deliver(number, None)
        return True

    def _prepare_one(self) -> bool:
        job = self._unsaid.get()
        if job is None:
            return False
        with self._at_work():
            if self._alive(job) and self._attempted(job.numbers, job.generation.request, lambda: self._encode(job)):
                if self._gates.wanted(job.generation):
                    self._ungated.put(job)
                else:
                    self._attempted(job.numbers, job.generation.request, lambda: self._finish(job))
        return True

    def _gate_one(self) -> bool:
        job = self._ungated.get()
        if job is None:
            return False
        with self._at_work():
            if self._alive(job):
                self._attempted(job.numbers, job.generation.request, lambda: self._finish(job))
        return True

    def _alive(self, job: _Job) -> bool:
        """Whether anybody still wants one of its sequences; if not, they are forgotten."""
        if any(self._wanted.get(number) for number in job.numbers):
            return True
        for number in job.numbers:
            self._deliver(number, None)
        return False

    def _attempted(self, numbers: range, request: str, work: Callable[[], None]) -> bool:
        """Whether `work` went well. If it did not, the sequences are told why."""
        try:
            work()
        except RosterError as error:
            failure = error
        except BaseException:  # the thread boundary: whatever one request does, panics of llguidance's too
            logger.exception("request %s could not be prepared", written(request), extra=fields(request_id=request))
            failure = InternalError("the request could not be prepared")
        else:
            return True
        for number in numbers:
            self._deliver(number, Rejection(number, failure, request))
        return False

    def _deliver(self, number: int, outcome: Sequence | Fetched | Rejection | None) -> None:
        # Under the lock: a Cancel that does not find the request here comes after it in the inbox.
        with self._lock:
            if self._wanted.pop(number, False) and outcome is not None:
                self._put(outcome)

    def _read(self, job: _Job) -> None:
        assert job.generation.adapter is not None
        job.adapter = self._adapters.find(job.generation.adapter)

    def _encode(self, job: _Job) -> None:
        if "" in job.generation.stop:
            raise InvalidRequest("a stop string must not be empty", param="stop")
        job.prompt, job.max_tokens = self._prompts.encode(job.generation)

    def _finish(self, job: _Job) -> None:
        assert job.prompt is not None
        scores = job.generation.echo and job.generation.logprobs is not None
        made = [self._sequence(job, job.prompt, index, scores) for index in range(job.generation.n)]
        with self._lock:
            wanted = [sequence for sequence in made if self._wanted.pop(sequence.id, False)]
            # Scores are of each sequence's own prompt, and a single token is not worth being shared.
            if len(wanted) > 1 and not scores and len(job.prompt) > 1:
                fork = Fork(len(wanted))
                for sequence in wanted:
                    sequence.fork = fork
            for sequence in wanted:
                self._put(sequence)

    def _sequence(self, job: _Job, prompt: Prompt, index: int, scores: bool) -> Sequence:
        generation = job.generation
        return Sequence(
            id=job.number + index,
            prompt=prompt,
            max_tokens=job.max_tokens,
            sampling=msgspec.structs.replace(generation.sampling, seed=_seed(generation.sampling.seed, index)),
            voice=self._voices(generation, prompt.ids),
            adapter=job.adapter,
            gate=self._gates.gate(generation, prompt.ids) if self._gates.wanted(generation) else None,
            top=generation.logprobs,
            scores=scores,
            opening=self._opening(generation, prompt) if generation.echo else "",
            draft=generation.draft,
            draft_tokens=generation.draft_tokens,
            rank=generation.rank,
            request=generation.request,
        )

    def _opening(self, generation: Generation, prompt: Prompt) -> str:
        # A prompt that was text is said as it was, whatever a tokenizer makes of it.
        return generation.prompt.text if isinstance(generation.prompt, Text) else self._read_back(prompt.ids)


def _until_done(work: Callable[[], bool]) -> None:
    while work():
        pass


def _seed(asked: int | None, index: int) -> int:
    """Of the sequence at `index` of a request: the first one's is what was asked for."""
    if asked is None:
        return random.getrandbits(64)
    if not index:
        return asked
    return int.from_bytes(hashlib.blake2b(f"{asked} {index}".encode(), digest_size=8).digest(), "big")
