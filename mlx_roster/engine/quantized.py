"""KV caches whose keys and values are kept in a few bits, of one sequence and of a batch.

They answer to the verbs of mlx-lm's caches, which has such a cache for one sequence only. All is quantized as it comes,
from the first token on: what a sequence says depends neither on its neighbours nor on the portions in which its prompt
was taken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, create_attention_mask, dynamic_roll

from mlx_roster.core import group_size


@dataclass(frozen=True, slots=True)
class Quantization:
    """How keys and values are kept: in `bits` each, at most `group_size` of them sharing a scale.

    `direct`: the model's attention can compute over packed ones. If not, it always gets them unpacked, layer by layer.
    """

    bits: int
    group_size: int
    direct: bool = True


class _Quantized:
    """What the two kinds have in common. For the engine's thread.

    `held` are words, scales and biases as mlx quantizes along the last axis, of the keys and then of the values, each
    (B, heads, tokens, ·); nothing before the first token. There are `end` tokens, and may be room for more.
    """

    def __init__(self, quantization: Quantization, held: list[mx.array] | None = None, end: int = 0) -> None:
        self.quantization = quantization
        self.held = held or []
        self.end = end
        self._packed = False

    @property
    def group_size(self) -> int:
        """How many numbers share a scale, in what is held."""
        words, scales, *_ = self.held
        return 32 * words.shape[3] // self.quantization.bits // scales.shape[3]

    @property
    def bits(self) -> int:
        """Where a cache has this, mlx-lm's attention takes what it has fetched for packed; it looks after each fetch.

        Raises AttributeError where what was last fetched is not packed.
        """
        if not self._packed:
            raise AttributeError("bits")
        return self.quantization.bits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Add (B, heads, tokens, head_dim) of each, and return all there are, packed or not: see `bits`.

        Raises ValueError where they cannot be parted into groups.
        """
        count, start = keys.shape[2], self.end
        group = group_size(self.quantization.group_size, keys.shape[3], values.shape[3])
        if group is None:
            raise ValueError(f"{keys.shape[3]} keys and {values.shape[3]} values cannot be parted into groups")
        self.end = start + count
        new = [array for one in (keys, values) for array in mx.quantize(one, group, self.quantization.bits)]
        if not self.held or self.end > self.held[0].shape[2]:
            self._grow(new, start)
        for held, added in zip(self.held, new, strict=True):
            held[:, :, start : self.end] = added
        # Many queries, and numbers that a CPU has no fast products of packed ones for, are better off with plain
        # matrices; and over these, attention need not hold all of its scores at once.
        slow = mx.default_device() == mx.cpu and keys.dtype != mx.float32
        self._packed = self.quantization.direct and count == 1 and not slow
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Any, Any]:
        """What was last fetched, once more: for layers that share a cache."""
        held = [array[:, :, : self.end] for array in self.held]
        keys, values = tuple(held[:3]), tuple(held[3:])
        return (keys, values) if self._packed else (self._unpack(keys), self._unpack(values))

    def _unpack(self, packed: tuple[mx.array, ...]) -> mx.array:
        words, scales, biases = packed
        return mx.dequantize(words, scales, biases, self.group_size, self.quantization.bits)

    def _grow(self, new: Sequence[mx.array], start: int) -> None:
        room = _rounded(new[0].shape[2])
        fresh = [mx.zeros((*added.shape[:2], room, added.shape[3]), added.dtype) for added in new]
        if self.held:
            both = zip(self.held, fresh, strict=True)
            fresh = [mx.concatenate([held[:, :, :start], more], axis=2) for held, more in both]
        self.held = fresh

    def size(self) -> int:
        return self.end

    def empty(self) -> bool:
        return not self.held

    def is_trimmable(self) -> bool:
        return True

    @property
    def state(self) -> list[mx.array]:
        """What has to be evaluated."""
        return self.held

    @property
    def nbytes(self) -> int:
        """With the room for more."""
        return sum(array.nbytes for array in self.held)


class QuantizedKV(_Quantized):
    """One sequence's."""

    @property
    def offset(self) -> int:
        return self.end

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return create_attention_mask(count, self.end, return_array, window_size)

    def trim(self, count: int) -> int:
        """Take the last tokens back, as many as there are; returns how many."""
        count = min(self.end, count)
        self.end -= count
        return count

    @classmethod
    def merge(cls, caches: Sequence[Self]) -> BatchQuantizedKV:
        """One batch of several, in their order. What they hold is copied."""
        end = max(cache.end for cache in caches)
        held = _aligned([(cache.held, 1, cache.end) for cache in caches])
        return BatchQuantizedKV(caches[0].quantization, [end - cache.end for cache in caches], held, end)


class BatchQuantizedKV(_Quantized):
    """A batch's, with padding on the left of the shorter ones. `offset` and `left_padding` are (B,), in tokens."""

    def __init__(
        self, quantization: Quantization, left_padding: list[int], held: list[mx.array] | None = None, end: int = 0
    ) -> None:
        super().__init__(quantization, held, end)
        self.left_padding = mx.array(left_padding)
        self.offset = end - self.left_padding
        self._right_padding: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        self.offset = self.offset + keys.shape[2]
        return super().update_and_fetch(keys, values)

    def make_mask(self, count: int, return_array: bool = False, **window: Any) -> mx.array:
        """(B, 1, count, all): also for a single query, which must not see its row's padding."""
        mask: mx.array = create_causal_mask(count, self.end, left_padding=self.left_padding, **window)
        return mask

    def prepare(self, *, right_padding: list[int], **lengths: Any) -> None:
        """What comes next is padded on the right, until `finalize`."""
        if max(right_padding) > 0:
            self._right_padding = mx.array(right_padding)

    def finalize(self) -> None:
        """Move that padding to the left."""
        padding, self._right_padding = self._right_padding, None
        if padding is not None:
            self.held = [dynamic_roll(array, padding[:, None], axis=2) for array in self.held]
            self.offset = self.offset - padding
            self.left_padding = self.left_padding + padding

    def trim(self, count: int) -> int:
        """Take the last tokens of each row back, as many as there are; returns how many."""
        count = min(self.end, count)
        self.end -= count
        self.offset = self.offset - count
        return count

    def filter(self, keep: list[int]) -> None:
        """Keep the rows at these positions, in this order, and no padding that all of them have."""
        rows = mx.array(keep)
        self.offset, padding = self.offset[rows], self.left_padding[rows]
        spare: Any = padding.min().item()
        self.left_padding = padding - spare
        self.held = [array[rows, :, spare:] for array in self.held]
        self.end -= spare

    def extend(self, other: Self) -> None:
        """Append another batch's rows."""
        end = max(self.end, other.end)
        batches = (self, other)
        self.held = _aligned([(batch.held, batch.offset.size, batch.end) for batch in batches])
        self.left_padding = mx.concatenate([batch.left_padding + (end - batch.end) for batch in batches])
        self.offset = mx.concatenate([batch.offset for batch in batches])
        self.end = end

    def extract(self, index: int) -> QuantizedKV:
        """The sequence of the row at `index`, in arrays of its own and with no room to spare."""
        start: Any = self.left_padding[index].item()
        held = [mx.contiguous(array[index : index + 1, :, start : self.end]) for array in self.held]
        return QuantizedKV(self.quantization, held, self.end - start)


def _rounded(tokens: int) -> int:
    """As many tokens as caches grow by, or a multiple."""
    step: int = KVCache.step
    return -(-tokens // step) * step


def _aligned(parts: Sequence[tuple[list[mx.array], int, int]]) -> list[mx.array]:
    """One batch of what each part holds, with its number of rows and where they end: all end together, with some room.

    A part that holds nothing is zeros.
    """
    end = max(end for _, _, end in parts)
    like = next((held for held, _, _ in parts if held), [])

    def row(number: int, held: list[mx.array], rows: int, last: int) -> mx.array:
        kind = like[number]
        one = held[number][:, :, :last] if held else mx.zeros((rows, kind.shape[1], 0, kind.shape[3]), kind.dtype)
        return mx.pad(one, [(0, 0), (0, 0), (end - one.shape[2], _rounded(end) - end), (0, 0)])

    return [mx.concatenate([row(number, *part) for part in parts]) for number in range(len(like))]
