"""The KV caches of a model's sequences: as the model makes them, or quantized, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlx_roster.core import GROUP_SIZES, CacheSize, ModelSource, group_size
from mlx_roster.engine.quantized import Quantization, QuantizedKV
from mlx_roster.errors import LoadFailed

#: What models raise whose attention does not know packed keys and values.
_FOREIGN = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def make_caches(model: Module, quantization: Quantization | None = None) -> list[Any]:
    """New caches for one sequence of `model`. Only those that keep all tokens are ever quantized."""
    caches: list[Any] = make_prompt_cache(model)
    return caches if quantization is None else [_quantized(cache, quantization) for cache in caches]


def _quantized(cache: Any, quantization: Quantization) -> Any:
    if type(cache) is CacheList:
        return CacheList(*(_quantized(one, quantization) for one in cache.caches))
    return QuantizedKV(quantization) if type(cache) is KVCache else cache


def quantization_for(model: Module, source: ModelSource) -> Quantization | None:
    """How the caches of `model` are quantized, if `source` says so: to be asked for once, and handed to `make_caches`.

    Raises LoadFailed where they cannot be. Steps are built for it, and never computed.
    """
    if source.kv_bits is None:
        return None
    for keys, values in _widths(model):
        if group_size(source.kv_group_size, keys, values) is None:
            widths = f"{keys}" if keys == values else f"{keys} and {values}"
            sizes = ", ".join(str(size) for size in GROUP_SIZES if size <= source.kv_group_size)
            raise LoadFailed(
                f"model {source.name!r}: kv.bits needs heads that a group of {sizes} divides, not {widths}"
            )
    kinds = [Quantization(source.kv_bits, source.kv_group_size, direct) for direct in (True, False)]
    for kind in kinds:
        try:
            batch = [cache.merge([cache, cache]) for cache in make_caches(model, kind)]
            model(mx.zeros((2, 1), dtype=mx.int32), cache=batch)
        except _FOREIGN as error:
            cause = error
        else:
            return kind
    raise LoadFailed(f"model {source.name!r}: its KV caches cannot be quantized; leave kv.bits out") from cause


def _widths(model: Module) -> set[tuple[int, int]]:
    """How many numbers one token's keys and values have, in each head, of the layers that keep all tokens."""
    caches = _after_one_token(model, make_caches(model))
    return {
        (cache.keys.shape[3], cache.values.shape[3])
        for cache in leaves(caches)
        if type(cache) is KVCache and cache.keys is not None
    }


def cache_size(model: Module, quantization: Quantization | None = None) -> CacheSize:
    """Of one sequence of `model`. A step of one token is built and never computed: its caches' shapes say it.

    Windows are taken for the longest that there is. What a cache of an unknown kind has after one token counts as all
    that it will ever have.
    """
    per_token = windowed = window = fixed = 0
    for cache in leaves(_after_one_token(model, make_caches(model, quantization))):
        if isinstance(cache, KVCache | QuantizedKV) and not cache.empty():
            # There is room for as many tokens as caches grow by.
            per_token += cache.nbytes // KVCache.step
        elif isinstance(cache, RotatingKVCache) and cache.keys is not None:
            windowed += cache.nbytes // cache.keys.shape[2]
            window = max(window, cache.max_size)
        else:
            fixed += cache.nbytes
    return CacheSize(per_token, windowed, window, fixed)


def batchable(model: Module, make: Callable[[], list[Any]]) -> bool:
    """Whether sequences of different lengths can be computed together, with the caches that `make` makes.

    mlx-lm's gemma2, where heads share keys, cannot: its scores have a dimension that a batch's mask has not. That is an
    error, or, with as many sequences as heads, an answer that is wrong. Steps are built, and never computed.
    """
    # No model has both numbers of heads.
    for rows in (5, 7):
        try:
            caches = [each[0].merge(list(each)) for each in zip(*(make() for _ in range(rows)), strict=True)]
            model(mx.zeros((rows, 2), dtype=mx.int32), cache=caches)
        except _FOREIGN:
            return False
    return True


def _after_one_token(model: Module, caches: list[Any]) -> list[Any]:
    model(mx.array([[0]]), cache=caches)
    return caches


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """All caches, those within a CacheList each by itself."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from leaves(cache.caches)
        else:
            yield cache
