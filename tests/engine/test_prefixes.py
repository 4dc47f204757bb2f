"""The prefix cache by itself: what it keeps, what it gives, and what it gives up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

from mlx_roster.engine.prefixes import Prefixes, cuttable
from mlx_roster.engine.prompts import Ids


def ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, dtype=np.int32)


def kv(length: int) -> list[Any]:
    """What a model of one layer would have after so many tokens: 32 bytes of each."""
    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 1, length, 4)), mx.ones((1, 1, length, 4)))
    cache.keys, cache.values = cache.keys[:, :, :length], cache.values[:, :, :length]
    return [cache]


def state() -> list[Any]:
    """What a recurrent model would have: nothing that could be cut back."""
    cache = ArraysCache(1)
    cache[0] = mx.ones((1, 8))
    return [cache]


def put(prefixes: Prefixes, tokens: Sequence[int], key: str | None = None, caches: list[Any] | None = None) -> None:
    prefixes.put(key, ids(tokens), kv(len(tokens)) if caches is None else caches)


def length(prefixes: Prefixes, tokens: Sequence[int], key: str | None = None) -> int:
    prefix = prefixes.take(key, ids(tokens))
    if prefix is None:
        return 0
    assert prefix.caches[0].empty() is False
    return prefix.length


def test_longest_common_beginning_is_given_and_a_token_is_left() -> None:
    prefixes = Prefixes(4, 2**20, least=1)
    assert length(prefixes, [1, 2, 3]) == 0
    put(prefixes, [1, 2, 3, 4])
    put(prefixes, [1, 2, 9, 9, 9])
    assert length(prefixes, [1, 2, 3, 4]) == 3
    assert length(prefixes, [1, 2, 3, 4, 5]) == 4
    assert length(prefixes, [1, 2, 9]) == 2
    assert length(prefixes, [1, 2, 9, 9, 4]) == 4
    assert length(prefixes, [1, 7]) == 1
    assert length(prefixes, [1]) == 0
    assert length(prefixes, [7, 2, 3]) == 0


def test_what_is_given_is_cut_to_length_and_the_entry_left_as_it_was() -> None:
    prefixes = Prefixes(4, 2**20, least=1)
    put(prefixes, [1, 2, 3, 4])
    for _ in range(2):
        prefix = prefixes.take(None, ids([1, 2, 7]))
        assert prefix is not None
        (cache,) = prefix.caches
        assert cache.size() == prefix.length == 2
        cache.update_and_fetch(mx.zeros((1, 1, 2, 4)), mx.zeros((1, 1, 2, 4)))
        mx.eval(cache.state)
    whole = prefixes.take(None, ids([1, 2, 3, 4, 5]))
    assert whole is not None
    assert whole.caches[0].keys.tolist() == mx.ones((1, 1, 4, 4)).tolist()


def test_what_cannot_be_cut_serves_only_prompts_that_it_begins_wholly() -> None:
    prefixes = Prefixes(4, 2**20, least=1)
    put(prefixes, [1, 2, 3], caches=state())
    assert length(prefixes, [1, 2, 3]) == 0
    assert length(prefixes, [1, 2, 4, 5]) == 0
    assert length(prefixes, [1, 2, 3, 4]) == 3
    put(prefixes, [1, 2, 3, 4], caches=state())
    assert len(prefixes) == 2
    put(prefixes, [1, 2, 3, 4], caches=state())
    assert len(prefixes) == 2


def test_prompt_cache_is_never_shared_across_adapters() -> None:
    prefixes = Prefixes(8, 2**20, least=1)
    put(prefixes, [1, 2, 3, 4])
    put(prefixes, [1, 2, 5], "a")
    assert length(prefixes, [1, 2, 3, 4, 5], "a") == 2
    assert length(prefixes, [1, 2, 5, 6]) == 2
    assert length(prefixes, [1, 2, 5, 6], "b") == 0
    put(prefixes, [1, 2, 3, 4], "b")
    assert len(prefixes) == 3


def test_a_few_tokens_in_common_are_not_worth_it() -> None:
    prefixes = Prefixes(4, 2**20)
    put(prefixes, range(20))
    assert length(prefixes, [*range(7), 99]) == 0
    assert length(prefixes, [*range(8), 99]) == 8


def test_entry_that_is_the_beginning_of_another_is_superfluous() -> None:
    prefixes = Prefixes(4, 2**20, least=1)
    put(prefixes, [1, 2])
    put(prefixes, [1, 2, 3, 4])
    assert (len(prefixes), prefixes.nbytes) == (1, 4 * 32)
    put(prefixes, [1, 2, 3])
    put(prefixes, [1, 2, 3, 4])
    assert len(prefixes) == 1
    put(prefixes, [])
    assert len(prefixes) == 1


def test_least_recently_used_goes_first() -> None:
    prefixes = Prefixes(2, 2**20, least=1)
    put(prefixes, [1, 1])
    put(prefixes, [2, 2])
    assert length(prefixes, [1, 1, 1]) == 2
    put(prefixes, [3, 3])
    assert length(prefixes, [2, 2, 2]) == 0
    put(prefixes, [1, 1])  # nothing new, but wanted again
    put(prefixes, [4, 4])
    assert [length(prefixes, [token] * 3) for token in (1, 2, 3, 4)] == [2, 0, 0, 2]
    assert repr(prefixes) == "<Prefixes: 2 entries, 128 bytes>"


def test_bytes_are_bounded_and_what_is_too_large_displaces_nothing() -> None:
    prefixes = Prefixes(100, 10 * 32, least=1)
    for token in range(1, 4):
        put(prefixes, [token] * 4)
    assert [length(prefixes, [token] * 5) for token in (1, 2, 3)] == [0, 4, 4]
    put(prefixes, [9] * 11)
    assert (len(prefixes), prefixes.nbytes) == (2, 8 * 32)
    put(prefixes, [9] * 10)
    assert (len(prefixes), prefixes.nbytes) == (1, 10 * 32)


@pytest.mark.parametrize("bounds", [(0, 2**20), (8, 0)])
def test_without_room_nothing_is_kept(bounds: tuple[int, int]) -> None:
    prefixes = Prefixes(*bounds)
    put(prefixes, [1, 2])
    assert not prefixes.keeps
    assert len(prefixes) == 0


def test_bytes_are_what_is_held_and_come_back() -> None:
    def held() -> int:
        mx.synchronize()
        return mx.get_active_memory()

    prefixes = Prefixes(8, 2**30, least=1)
    before = held()
    for token in range(4):
        # Views of a batch's buffers, which must not be what is kept.
        buffers = mx.ones((64, 2**16))
        mx.eval(buffers)
        cache = ArraysCache(1)
        cache[0] = buffers[token : token + 1]
        prefixes.put(None, ids([token] * 4), [CacheList(cache, *kv(2**12))])
        del buffers, cache
    assert prefixes.nbytes == 4 * (2**18 + 2**12 * 32)
    assert abs(held() - before - prefixes.nbytes) < 2**12
    prefixes.shed(1)
    assert len(prefixes) == 3
    assert abs(held() - before - prefixes.nbytes) < 2**12
    prefixes.shed(2**40)
    assert len(prefixes) == 0
    put(prefixes, [1, 2])
    prefixes.clear()
    assert (len(prefixes), prefixes.nbytes) == (0, 0)
    assert held() == before


def test_limits_that_change_keep_what_was_of_use_last() -> None:
    prefixes = Prefixes(8, 2**20, least=1)
    for token in range(1, 6):
        put(prefixes, [token] * 4)
    assert length(prefixes, [1] * 5) == 4
    prefixes.resize(3, 2**20)
    assert [length(prefixes, [token] * 5) for token in range(1, 6)] == [4, 0, 0, 4, 4]
    assert length(prefixes, [4] * 5) == 4
    prefixes.resize(8, 2 * 4 * 32)
    assert [length(prefixes, [token] * 5) for token in (1, 4, 5)] == [0, 4, 4]
    put(prefixes, [6] * 4)
    assert [length(prefixes, [token] * 5) for token in (4, 5, 6)] == [0, 4, 4]
    for bounds in ((0, 2**20), (8, 0)):
        prefixes.resize(*bounds)
        assert (len(prefixes), prefixes.nbytes, prefixes.keeps) == (0, 0, False)
    prefixes.resize(1, 2**20)
    put(prefixes, [1, 2])
    assert len(prefixes) == 1


def test_which_caches_can_be_cut() -> None:
    assert cuttable([KVCache(), CacheList(KVCache(), KVCache())])
    assert not cuttable([KVCache(), ArraysCache(2)])
    assert not cuttable([CacheList(KVCache(), RotatingKVCache(8))])
