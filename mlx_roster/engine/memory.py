"""How much of the machine an engine may take, and how much it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlx_roster.core import CacheSize, Measured, ModelSource
from mlx_roster.engine.prefixes import Prefixes
from mlx_roster.engine.sequences import Sequence

#: Tokens of an answer that room is kept for. Many ask for more than they need: held to their word, few would run at a
#: time. One that goes on for longer may come to exceed the share; then no other is let in.
FORESEEN = 4096

#: Caches grow by so many tokens at a time: they may be that much longer than what they hold.
GROWTH: int = KVCache.step

#: What is in use has changed a good deal when it has by a part of the share, and by this much, in bytes.
LEAST_CHANGE = 16 * 2**20
PART = 32

#: The least time between two reports while sequences run, in seconds.
PAUSE = 0.25

#: Seconds without a report after which nobody can tell whether an engine that takes in prompts gets any further.
SILENCE = 1.0

#: Buffers kept for reuse may take a quarter of what is in use, but at least this: they are no part of any estimate.
LEAST_CACHE = 128 * 2**20


class Memory:
    """An engine's share, and its accounts. For the engine's thread; made when the weights are in memory, and no more.

    `running` are the bytes of the caches of all that runs. `share` and `limits` may be set anew at any time.
    """

    def __init__(self, source: ModelSource, size: CacheSize, prefixes: Prefixes, running: Callable[[], int]) -> None:
        self.share = source.memory
        self.limits = source.limits
        self._most = source.memory
        self._size = size
        self._prefixes = prefixes
        self._running = running
        self._weights = mx.get_active_memory()
        self._told = self._weights
        self._when = 0.0

    def room(self, sequence: Sequence, running: Collection[Sequence]) -> bool:
        """Whether one more may run beside those that do, all of them grown as far as can be foreseen.

        What is kept of finished ones is given up for it where that suffices. Always, where none runs: it would wait for
        nothing.
        """
        everyone = (sequence, *running)
        longest = max(map(_tokens, everyone))
        # Each row of a batch is as long as the longest. A cached prefix spares nothing: it is copied into the batch.
        caches = len(everyone) * self._size.bytes(longest + GROWTH)
        # What a prompt comes to is held for others who begin with it, too. Once it is there, it is in use.
        forks = {one.fork for one in everyone if one.fork is not None and one.fork.caches is None}
        heirs = sum(fork.heirs > (fork is sequence.fork) for fork in forks)
        caches += heirs * self._size.bytes(longest)
        # What is not yet computed is counted among the caches, and not in use.
        others = max(mx.get_active_memory() - self._running(), self._weights + self._prefixes.nbytes)
        excess = others + caches - self.share
        if excess > 0 and (excess <= self._prefixes.nbytes or not running):
            # What it can begin with is its own from here on, and may go from the prompt cache.
            sequence.prefix = self._prefixes.take(sequence.key, sequence.prompt.tokens)
            self._prefixes.shed(excess)
            return True
        return excess <= 0

    def watch(self) -> bool:
        """Keep to the share as far as the prompt cache goes. Returns whether a report is due. After each step."""
        active = mx.get_active_memory()
        exceeds = active > self.share
        if exceeds and len(self._prefixes):
            self._prefixes.shed(active - self.share)
        if exceeds and self._told <= self.share:
            return True
        changed = abs(active - self._told) > max(LEAST_CHANGE, self.share // PART)
        return changed and time.monotonic() - self._when >= PAUSE

    @property
    def silent(self) -> bool:
        """Whether nothing has been reported for a while."""
        return time.monotonic() - self._when >= SILENCE

    def take(self, share: int) -> bool:
        """This is the share from now on. Returns whether a report is due: where it is exceeded, or less than what was
        last told to be in use, since somebody may be waiting for that."""
        expected, self.share = share < self._told, share
        if share > self._most:  # the budget has grown
            self._most = share
            self.hold()
        return self.shrink() or expected

    def shrink(self) -> bool:
        """Give up what is not needed where the share is exceeded. Returns whether it was."""
        excess = mx.get_active_memory() - self.share
        if excess <= 0:
            return False
        self._prefixes.shed(excess)
        mx.clear_cache()
        return True

    def measured(self) -> Measured:
        """What is in use now, to be told: whether the next report is due is a question of what has changed since."""
        active, prompts = mx.get_active_memory(), self._prefixes.nbytes
        reserved = self._weights + self.limits.bank + self.limits.kv
        self._told, self._when = active, time.monotonic()
        return Measured(
            active=active,
            cache=mx.get_cache_memory(),
            growth=max(0, reserved - (active - prompts)),
            kv=self._running(),
            prompts=prompts,
        )

    def hold(self) -> None:
        """Hold mlx to the budget. After each new batch: BatchGenerator sets a wired limit of its own.

        Not to the share: mlx would have each step wait that exceeds it, and what runs must not become slower.
        """
        mx.set_memory_limit(self._most)
        mx.set_cache_limit(max(mx.get_active_memory() // 4, LEAST_CACHE))
        if mx.metal.is_available():
            mx.set_wired_limit(min(self._most, int(mx.device_info()["max_recommended_working_set_size"])))


def _tokens(sequence: Sequence) -> int:
    """How long a sequence may become, as far as can be foreseen."""
    foreseen = max(FORESEEN, sequence.completion + GROWTH)
    return len(sequence.prompt) + min(sequence.max_tokens, foreseen)
