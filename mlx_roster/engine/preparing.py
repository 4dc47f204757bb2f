"""What can be done for a request off the step path, on a thread of its own: tokenizing, and reading adapters."""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable, Container
from weakref import WeakValueDictionary

import msgspec

from mlx_roster.core import AdapterSource, Generation
from mlx_roster.engine.prompts import Prompts
from mlx_roster.engine.scheduler import Adapter, Cancel, Fetched, Rejection, Sequence
from mlx_roster.engine.text import Detokenizer, TextStream
from mlx_roster.errors import AdapterIncompatible, InternalError, InvalidRequest, RosterError
from mlx_roster.tensors import AdapterReader, AdapterWeights, Targets

logger = logging.getLogger(__name__)


class Adapters:
    """Turns adapter sources into what sequences carry. For the preparing thread."""

    def __init__(self, reader: AdapterReader, targets: Targets, resident: Container[str], slots: int) -> None:
        self._reader = reader
        self._targets = targets
        # The engine thread's own table: what it says may be outdated at once, which `Scheduler.schedule` allows for.
        self._resident = resident
        self._slots = slots
        # Many may wait for one adapter: they share its weights, and the last to be admitted frees them.
        self._read: WeakValueDictionary[str, AdapterWeights] = WeakValueDictionary()

    def find(self, source: AdapterSource) -> Adapter:
        """The adapter, with its weights unless they are in a slot. Raises AdapterIncompatible."""
        if not self._slots or not self._targets:
            raise AdapterIncompatible("this model takes no adapters", param="adapters")
        identity = self._reader.identity(source)
        if identity in self._resident:
            return Adapter(identity, source, None)
        weights = self._read.get(identity)
        if weights is None:
            weights = self._reader.read(source, self._targets)
            self._read[weights.identity] = weights
        return Adapter(weights.identity, source, weights)


class Preparer:
    """One thread that prepares requests in order, and puts them, or why not, into the engine's inbox.

    A Cancel overtakes: it does not wait for what is being prepared. Open from `start` to `close`.
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
        self._jobs: queue.SimpleQueue[tuple[int, Generation | AdapterSource] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: Submitted and not yet in the inbox; False once cancelled.
        self._wanted: dict[int, bool] = {}
        self._thread = threading.Thread(target=self._run, name="preparer", daemon=True)

    def start(self) -> None:
        """Begin. Called once."""
        self._thread.start()

    def close(self) -> None:
        """End after the job in hand; what still waits is dropped."""
        with self._lock:
            self._wanted.clear()
        self._jobs.put(None)
        self._thread.join()

    def submit(self, number: int, job: Generation | AdapterSource) -> None:
        """Prepare a request, or fetch again the adapter of a sequence that waits. From any thread."""
        with self._lock:
            self._wanted[number] = True
        self._jobs.put((number, job))

    def cancel(self, number: int) -> None:
        """Drop a request, wherever it is by now. From any thread."""
        with self._lock:
            if number in self._wanted:
                self._wanted[number] = False
            self._put(Cancel(number))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            number, work = job
            if not self._wanted.get(number, False):
                self._deliver(number, None)
                continue
            self._deliver(number, self._outcome(number, work))

    def _deliver(self, number: int, outcome: Sequence | Fetched | Rejection | None) -> None:
        # Under the lock: a Cancel that does not find the request here comes after it in the inbox.
        with self._lock:
            if self._wanted.pop(number, False) and outcome is not None:
                self._put(outcome)

    def _outcome(self, number: int, work: Generation | AdapterSource) -> Sequence | Fetched | Rejection:
        try:
            if isinstance(work, AdapterSource):
                return Fetched(number, self._adapters.find(work))
            return self._prepare(number, work)
        except RosterError as error:
            return Rejection(number, error)
        except Exception:  # the thread boundary: whatever one request does, the next must find us here
            logger.exception("sequence %d could not be prepared", number)
            return Rejection(number, InternalError("the request could not be prepared"))

    def _prepare(self, number: int, generation: Generation) -> Sequence:
        if "" in generation.stop:
            raise InvalidRequest("a stop string must not be empty", param="stop")
        adapter = None if generation.adapter is None else self._adapters.find(generation.adapter)
        prompt, max_tokens = self._prompts.encode(generation)
        sampling = generation.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(64))
        text = TextStream(self._detokenizer(), generation.stop)
        return Sequence(number, prompt, max_tokens, sampling, text, adapter)
