"""What can be done for a request off the step path, on threads of its own: tokenizing, and reading adapters."""

from __future__ import annotations

import functools
import logging
import queue
import random
import threading
from collections.abc import Callable, Container
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from mlx_roster.core import AdapterSource, Generation
from mlx_roster.engine.prompts import Prompts
from mlx_roster.engine.scheduler import Adapter, Cancel, Fetched, Rejection, Sequence
from mlx_roster.engine.text import Detokenizer, TextStream
from mlx_roster.errors import AdapterIncompatible, InternalError, InvalidRequest, RosterError
from mlx_roster.tensors import AdapterReader, AdapterWeights, Targets

logger = logging.getLogger(__name__)

Done = TypeVar("Done")

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


class Preparer:
    """Two threads that prepare requests, and put them, or why not, into the engine's inbox.

    One reads adapters, in order; the other does all else, so that a request without an adapter waits for no file. A
    Cancel overtakes: it does not wait for what is being prepared. Open from `start` to `close`.
    """

    def __init__(
        self,
        prompts: Prompts,
        detokenizer: Callable[[], Detokenizer],
        adapters: Adapters,
        put: Callable[[Sequence | Fetched | Cancel | Rejection], None],
    ) -> None:
        self._prompts = prompts
        self._detokenizer = detokenizer
        self._adapters = adapters
        self._put = put
        self._unread: queue.SimpleQueue[tuple[int, Generation | AdapterSource, AdapterSource] | None]
        self._unread = queue.SimpleQueue()
        self._unsaid: queue.SimpleQueue[tuple[int, Generation, Adapter | None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: Submitted and not yet in the inbox; False once cancelled.
        self._wanted: dict[int, bool] = {}
        self._threads = [
            threading.Thread(target=self._read, name="reader", daemon=True),
            threading.Thread(target=self._prepare, name="preparer", daemon=True),
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
        for thread in self._threads:
            thread.join()

    def submit(self, number: int, job: Generation | AdapterSource) -> None:
        """Prepare a request, or fetch again the adapter of a sequence that waits. From any thread."""
        with self._lock:
            self._wanted[number] = True
        source = job if isinstance(job, AdapterSource) else job.adapter
        if source is not None:
            self._unread.put((number, job, source))
        elif isinstance(job, Generation):
            self._unsaid.put((number, job, None))

    def cancel(self, number: int) -> None:
        """Drop a request, wherever it is by now. From any thread."""
        with self._lock:
            if number in self._wanted:
                self._wanted[number] = False
            self._put(Cancel(number))

    # One job in each call: what a thread that waits for the next one still referred to would stay in memory.

    def _read(self) -> None:
        while self._read_one():
            pass

    def _read_one(self) -> bool:
        item = self._unread.get()
        if item is None:
            return False
        number, job, source = item
        if not self._wanted.get(number, False):
            self._deliver(number, None)
            return True
        found = _attempt(number, functools.partial(self._adapters.find, source))
        if isinstance(found, Rejection):
            self._deliver(number, found)
        elif isinstance(job, Generation):
            self._unsaid.put((number, job, found))
        else:
            self._deliver(number, Fetched(number, found))
        return True

    def _prepare(self) -> None:
        while self._prepare_one():
            pass

    def _prepare_one(self) -> bool:
        item = self._unsaid.get()
        if item is None:
            return False
        number, generation, adapter = item
        wanted = self._wanted.get(number, False)
        make = functools.partial(self._sequence, number, generation, adapter)
        self._deliver(number, _attempt(number, make) if wanted else None)
        return True

    def _deliver(self, number: int, outcome: Sequence | Fetched | Rejection | None) -> None:
        # Under the lock: a Cancel that does not find the request here comes after it in the inbox.
        with self._lock:
            if self._wanted.pop(number, False) and outcome is not None:
                self._put(outcome)

    def _sequence(self, number: int, generation: Generation, adapter: Adapter | None) -> Sequence:
        if "" in generation.stop:
            raise InvalidRequest("a stop string must not be empty", param="stop")
        prompt, max_tokens = self._prompts.encode(generation)
        sampling = generation.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(64))
        text = TextStream(self._detokenizer(), generation.stop)
        return Sequence(number, prompt, max_tokens, sampling, text, adapter)


def _attempt(number: int, work: Callable[[], Done]) -> Done | Rejection:
    """What `work` returns, or why it does not."""
    try:
        return work()
    except RosterError as error:
        return Rejection(number, error)
    except Exception:  # the thread boundary: whatever one request does, the next must find us here
        logger.exception("sequence %d could not be prepared", number)
        return Rejection(number, InternalError("the request could not be prepared"))
