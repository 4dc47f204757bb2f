"""Batches of quantized KV caches: what the verbs of mlx-lm do to them, against lists of what each row is to hold."""

from __future__ import annotations

import copy
import random

import mlx.core as mx
import numpy as np
import pytest

from mlx_roster.engine.quantized import BatchQuantizedKV, Quantization, QuantizedKV

HEADS, KEYS, VALUES = 2, 64, 32


def _numbers(rows: int, count: int) -> tuple[mx.array, mx.array]:
    return mx.random.normal((rows, HEADS, count, KEYS)), mx.random.normal((rows, HEADS, count, VALUES))


class Held:
    """What one row is to hold."""

    def __init__(self) -> None:
        self.keys = np.zeros((HEADS, 0, KEYS), dtype=np.float32)
        self.values = np.zeros((HEADS, 0, VALUES), dtype=np.float32)

    def add(self, keys: mx.array, values: mx.array) -> None:
        self.keys = np.concatenate([self.keys, np.array(keys)], axis=1)
        self.values = np.concatenate([self.values, np.array(values)], axis=1)

    def cut(self, length: int) -> None:
        self.keys, self.values = self.keys[:, :length], self.values[:, :length]

    @property
    def length(self) -> int:
        return int(self.keys.shape[1])

    def check(self, keys: mx.array, values: mx.array, quantization: Quantization) -> None:
        group = 32  # the largest that both have
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            packed = mx.quantize(mx.array(mine), group, quantization.bits)
            assert np.array_equal(np.array(mx.dequantize(*packed, group, quantization.bits)), np.array(theirs))


class Walk:
    """A batch, and what its rows are to hold."""

    def __init__(self, seed: int, bits: int) -> None:
        self.draw = random.Random(seed)
        self.quantization = Quantization(bits, 64, direct=False)
        self.batch, self.rows = self.fresh()

    def fresh(self) -> tuple[BatchQuantizedKV, list[Held]]:
        """One to three new sequences, some of which hold something already."""
        caches, rows = [], []
        for _ in range(self.draw.randint(1, 3)):
            cache, row = QuantizedKV(self.quantization), Held()
            if count := self.draw.choice([0, 1, 5, 70]):
                keys, values = _numbers(1, count)
                cache.update_and_fetch(keys, values)
                row.add(keys[0], values[0])
                row.cut(count - cache.trim(self.draw.choice([0, 1, 3])))
            caches.append(cache)
            rows.append(row)
        return caches[0].merge(caches), rows

    def decode(self) -> None:
        keys, values = _numbers(len(self.rows), 1)
        fetched = self.batch.update_and_fetch(keys, values)
        for index, row in enumerate(self.rows):
            row.add(keys[index], values[index])
            row.check(*(one[index, :, -row.length :] for one in fetched), self.quantization)

    def prefill(self) -> None:
        """Of unequal lengths, in two portions, as mlx-lm takes prompts in."""
        lengths = [self.draw.choice([1, 4, 40, 260]) for _ in self.rows]
        most = max(lengths)
        keys, values = _numbers(len(self.rows), most)
        if min(lengths) < most:
            self.batch.prepare(lengths=lengths, right_padding=[most - length for length in lengths])
        part = self.draw.randint(1, most)
        for where in (slice(0, part), slice(part, most)):
            if where.start < where.stop:
                self.batch.update_and_fetch(keys[:, :, where], values[:, :, where])
        self.batch.finalize()
        for index, (row, length) in enumerate(zip(self.rows, lengths, strict=True)):
            row.add(keys[index, :, :length], values[index, :, :length])

    def filter(self) -> None:
        keep = sorted(self.draw.sample(range(len(self.rows)), self.draw.randint(1, len(self.rows))))
        self.batch.filter(keep)
        self.rows = [self.rows[index] for index in keep]

    def extend(self) -> None:
        batch, rows = self.fresh()
        self.batch.extend(batch)
        self.rows += rows

    def trim(self) -> None:
        count = self.draw.randint(0, min(row.length for row in self.rows))
        assert self.batch.trim(count) == count
        for row in self.rows:
            row.cut(row.length - count)

    def split(self) -> None:
        """As mlx-lm parts a batch: by a copy."""
        copied = copy.deepcopy(self.batch)
        copied.filter([0])
        copied.update_and_fetch(*_numbers(1, 3))

    def rebuild(self) -> None:
        caches = [self.batch.extract(index) for index in range(len(self.rows))]
        assert [cache.nbytes for cache in caches] == [row.length * self.per_token for row in self.rows]
        self.batch = caches[0].merge(caches)

    @property
    def per_token(self) -> int:
        """Bytes: groups of 32 have a scale and a bias in float32 each."""
        numbers = HEADS * (KEYS + VALUES)
        return numbers * self.quantization.bits // 8 + numbers // 32 * 8

    def check(self) -> None:
        assert self.batch.offset.tolist() == [row.length for row in self.rows]
        assert self.batch.left_padding.tolist() == [self.batch.size() - row.length for row in self.rows]
        mask = self.batch.make_mask(1)
        assert mask.sum(axis=-1).flatten().tolist() == [row.length + 1 for row in self.rows]
        for index, row in enumerate(self.rows):
            cache = self.batch.extract(index)
            assert (cache.offset, cache.size()) == (row.length, row.length)
            if row.length:
                row.check(*(one[0] for one in cache.keys_and_values()), self.quantization)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_whatever_happens_to_a_batch_its_rows_hold_what_they_were_given(bits: int) -> None:
    for seed in range(4):
        mx.random.seed(seed)
        walk = Walk(seed, bits)
        walk.check()
        verbs = (walk.decode, walk.prefill, walk.filter, walk.extend, walk.trim, walk.split, walk.rebuild)
        for _ in range(20):
            walk.draw.choice(verbs)()
            walk.check()


def test_copy_takes_no_memory_and_is_apart() -> None:
    quantization = Quantization(8, 64)
    cache = QuantizedKV(quantization)
    cache.update_and_fetch(*_numbers(1, 256))
    mx.eval(cache.state)
    active = mx.get_active_memory()
    other = copy.deepcopy(cache)
    mx.eval(other.state)
    assert mx.get_active_memory() == active
    held = np.array(cache.state[0])
    other.trim(100)
    other.update_and_fetch(*_numbers(1, 100))
    mx.eval(other.state)
    assert (cache.offset, other.offset) == (256, 256)
    assert np.array_equal(np.array(cache.state[0]), held)
    assert not np.array_equal(np.array(other.state[0]), held)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_packed_ones_are_handed_out_for_single_queries_where_that_is_fast(dtype: mx.Dtype) -> None:
    direct, never = (QuantizedKV(Quantization(4, 64, direct=direct)) for direct in (True, False))
    fast = dtype == mx.float32 or mx.default_device() != mx.cpu
    for cache in (direct, never):
        for count in (3, 1, 2):
            keys, values = (one.astype(dtype) for one in _numbers(1, count))
            fetched, _ = cache.update_and_fetch(keys, values)
            packed = cache is direct and count == 1 and fast
            assert hasattr(cache, "bits") == packed
            assert isinstance(fetched, tuple) == packed
            assert cache.group_size == 32
            if not packed:
                assert fetched.dtype == dtype
