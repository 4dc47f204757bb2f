"""The prefix cache: KV caches of what has been computed, kept for prompts that begin the same way.

Keys and values depend on the weights they were computed with, so an entry belongs to an adapter's identity (None: the
base) and serves no other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
from cachetools import LRUCache
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

from mlx_roster.engine.caches import leaves
from mlx_roster.engine.prompts import Ids
from mlx_roster.engine.quantized import QuantizedKV

#: Tokens in common that make it worthwhile to begin from an entry. Most chats share the few that a template begins
#: with, and prompts of the same length are taken in with less work than the same prompts cut to different lengths.
LEAST = 8


class Prefix(NamedTuple):
    """The caches of the first `length` tokens of a prompt. They are the caller's own."""

    length: int
    caches: list[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What is kept, and never changed: `caches` hold exactly `tokens`. A `cuttable` one serves any part of them.

    Of another `group` nothing can be of use: it is whose they are, and the least that must be in common.
    """

    group: tuple[str | None, bytes]
    tokens: Ids
    caches: list[Any]
    cuttable: bool

    def reach(self, prompt: Ids) -> int:
        """How much of `prompt` can be had from here. The last token is left over: its logits must be computed."""
        common = shared(self.tokens, prompt)
        if not self.cuttable and common < len(self.tokens):
            return 0
        most = len(prompt) - 1
        return min(common, most) if self.cuttable or common <= most else 0


class Prefixes:
    """At most `entries` entries in at most `budget` bytes; the one that was of no use for longest goes first.

    For the engine's thread. 0 of either keeps nothing. What has less than `least` tokens in common is not given.
    """

    def __init__(self, entries: int, budget: int, least: int = LEAST) -> None:
        self._entries = entries
        self._least = least
        # An entry is its own key: looking at all of them then leaves their order alone.
        self._sizes: LRUCache[Entry, int] = LRUCache(maxsize=budget, getsizeof=int)

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        return f"<Prefixes: {len(self)} entries, {self.nbytes} bytes>"

    @property
    def keeps(self) -> bool:
        """Whether there is any use in `put`."""
        return self._entries > 0 and self._sizes.maxsize > 0

    @property
    def nbytes(self) -> int:
        """Bytes of all entries: what would be free without them, once no batch is made of them any more."""
        return int(self._sizes.currsize)

    def take(self, key: str | None, prompt: Ids) -> Prefix | None:
        """The longest beginning of `prompt` that there is, but never the whole."""
        best, length = None, self._least - 1
        for entry in self._of(self._group(key, prompt)):
            if (reach := entry.reach(prompt)) > length:
                best, length = entry, reach
        if best is None:
            return None
        self._touch(best)
        # New arrays over the same buffers: nothing is copied until a batch is made of them.
        caches = copy.deepcopy(best.caches)
        if length < len(best.tokens):
            trim_prompt_cache(caches, len(best.tokens) - length)
        return Prefix(length, caches)

    def put(self, key: str | None, tokens: Ids, caches: list[Any]) -> None:
        """Keep `caches`, which hold exactly `tokens` and are given up by the caller, unless they are of no use.

        What they make superfluous goes. Nothing is waited for: the copying is left to run, on the stream in force.
        """
        size = sum(array.nbytes for array in _arrays(caches))
        if not self.keeps or len(tokens) < self._least or size > self._sizes.maxsize:
            return
        entry = Entry(self._group(key, tokens), tokens, caches, can_trim_prompt_cache(caches))
        for other in self._of(entry.group):
            common = shared(other.tokens, tokens)
            if common == len(tokens) and (other.cuttable or common == len(other.tokens)):
                self._touch(other)
                return
            if common == len(other.tokens) and entry.cuttable:
                del self._sizes[other]
        kept(Prefix(len(tokens), caches))
        while len(self) >= self._entries:
            self._sizes.popitem()
        self._sizes[entry] = size

    def resize(self, entries: int, budget: int) -> None:
        """Live by other limits from now on: what is too much for them goes."""
        kept, self._sizes = self._sizes, LRUCache(maxsize=budget, getsizeof=int)
        self._entries = entries
        while len(kept) > entries or kept.currsize > budget:
            kept.popitem()
        while kept:
            # Those of least use first, so that they are again.
            entry, size = kept.popitem()
            self._sizes[entry] = size

    def shed(self, excess: int) -> None:
        """Give up at least so many bytes, or all there are."""
        least = self.nbytes - excess
        while self._sizes and self.nbytes > least:
            self._sizes.popitem()

    def clear(self) -> None:
        """Give up all."""
        self._sizes.clear()

    def _group(self, key: str | None, tokens: Ids) -> tuple[str | None, bytes]:
        return key, tokens[: self._least].tobytes()

    def _of(self, group: tuple[str | None, bytes]) -> list[Entry]:
        return [entry for entry in self._sizes if entry.group == group]

    def _touch(self, entry: Entry) -> None:
        self._sizes[entry]  # reading is what cachetools takes for a use


def kept(prefix: Prefix) -> Prefix:
    """The same, to be held on to without what its caches were cut from. The copying is left to run, on the stream in
    force: nothing is waited for."""
    _own(prefix.caches)
    mx.async_eval(_arrays(prefix.caches))  # type: ignore[no-untyped-call]
    return prefix


def shared(one: Ids, other: Ids) -> int:
    """How many tokens two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    if not length:
        return 0
    differ = one[:length] != other[:length]
    first = int(differ.argmax())
    return first if differ[first] else length


def cuttable(caches: Iterable[Any]) -> bool:
    """Whether caches like these can be cut back to any length, however long they become."""
    # A rotating cache can until it has wrapped.
    return all(cache.is_trimmable() and not isinstance(cache, RotatingKVCache) for cache in leaves(caches))


def recurrent(caches: Iterable[Any]) -> bool:
    """Whether caches like these hold states that each token changes, and not only what each token has left."""
    return any(isinstance(cache, ArraysCache) for cache in leaves(caches))


def _arrays(caches: Sequence[Any]) -> list[mx.array]:
    states: Any = tree_flatten([cache.state for cache in leaves(caches)])
    return [state for _, state in states if isinstance(state, mx.array)]


def _own(caches: Sequence[Any]) -> None:
    """What a batch hands out may be views, which would keep all of its buffers. Those of keys and values are none."""
    for cache in leaves(caches):
        if isinstance(cache, KVCache | RotatingKVCache | QuantizedKV):
            continue
        cache.state = tree_map(lambda leaf: mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf, cache.state)
