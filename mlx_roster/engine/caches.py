"""What the KV caches of a model's sequences take, as the model itself makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlx_roster.core import CacheSize


def cache_size(model: Module) -> CacheSize:
    """Of one sequence of `model`. A step of one token is built and never computed: its caches' shapes say it.

    Windows are taken for the longest that there is. What a cache of an unknown kind has after one token counts as all
    that it will ever have.
    """
    caches: list[Any] = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    per_token = windowed = window = fixed = 0
    for cache in leaves(caches):
        if isinstance(cache, KVCache) and cache.keys is not None:
            per_token += cache.nbytes // cache.keys.shape[2]
        elif isinstance(cache, RotatingKVCache) and cache.keys is not None:
            windowed += cache.nbytes // cache.keys.shape[2]
            window = max(window, cache.max_size)
        else:
            fixed += cache.nbytes
    return CacheSize(per_token, windowed, window, fixed)


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """All caches, those within a CacheList each by itself."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from leaves(cache.caches)
        else:
            yield cache
