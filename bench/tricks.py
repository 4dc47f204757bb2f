"""Ways to let each row of a decode step have its own adapter, for `bench.decode`: all give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module


class Composition:
    """Which slot each row of a batch has, and what is made of that once for all layers and steps."""

    def __init__(self, slots: Sequence[int], rank: int) -> None:
        self.rows = list(slots)
        self.distinct = sorted(set(slots))
        self.slots = mx.array(self.rows, dtype=mx.uint32)
        self._rank = rank

    @cached_property
    def groups(self) -> tuple[mx.array, mx.array, mx.array] | None:
        """The rows in the order of their slots, the way back, and each group's slot; None if groups are not equal."""
        if len(self.rows) % len(self.distinct):
            return None
        order = sorted(range(len(self.rows)), key=self.rows.__getitem__)
        back = [order.index(row) for row in range(len(order))]
        return tuple(mx.array(one, dtype=mx.uint32) for one in (order, back, self.distinct))  # type: ignore[return-value]

    @cached_property
    def mask(self) -> mx.array:
        """(B, 1, distinct * r): each row has ones where its own adapter's ranks are."""
        wide = [[float(slot == own) for slot in self.distinct for _ in range(self._rank)] for own in self.rows]
        return mx.array(wide)[:, None]


class Tried(Module):
    """A linear layer with a stack of adapters, a (S, r, D) and b (S, r, O), and the trick that is tried with them."""

    def __init__(self, inner: Any, slots: int, rank: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        outputs, inputs = inner.weight.shape
        self["inner"] = inner
        self.inner = inner
        self.a = 0.02 * mx.random.normal((slots, rank, inputs))
        self.b = 0.02 * mx.random.normal((slots, rank, outputs))
        self.wide = mx.contiguous(self.a.swapaxes(-1, -2))
        self.trick: Trick = plain
        self.rows: Composition
        self._made: tuple[mx.array, mx.array] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # The stacks are no parameters of the model.
        object.__setattr__(self, name, value)

    def __call__(self, x: mx.array) -> mx.array:
        return self.trick(self, x, self.inner(x))

    def compose(self, trick: Trick, rows: Composition) -> None:
        """What follows is with this trick, on this batch."""
        self.trick, self.rows, self._made = trick, rows, None

    def once(self, make: Callable[[], tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
        """What needs to be made only when rows join or leave."""
        if self._made is None:
            self._made = make()
            mx.eval(*self._made)
        return self._made


Trick = Callable[[Tried, mx.array, mx.array], mx.array]


def plain(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """No adapter."""
    return y


def gathered(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """Each row's own product, found in the stacks: what the engine does for a mixed batch."""
    z = mx.gather_mm(x, layer.a.swapaxes(-1, -2), rhs_indices=layer.rows.slots)
    return y + mx.gather_mm(z, layer.b, rhs_indices=layer.rows.slots)


def gathered_wide(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """The same with the first stack as adapters' files have it, (S, D, r)."""
    z = mx.gather_mm(x, layer.wide, rhs_indices=layer.rows.slots)
    return y + mx.gather_mm(z, layer.b, rhs_indices=layer.rows.slots)


def shared(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """One product for all rows: what the engine does where all have one adapter."""
    slot = layer.rows.distinct[0]
    a, b = layer.once(lambda: (layer.a[slot].T, layer.b[slot]))
    return mx.addmm(y, x @ a, b)


def grouped(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """The rows put in order, so that each adapter has one product for all of its own, and back again."""
    assert layer.rows.groups is not None
    order, back, slots = layer.rows.groups
    z = x.reshape(x.shape[0], -1)[order].reshape(slots.size, -1, x.shape[-1])
    z = mx.gather_mm(z, layer.a.swapaxes(-1, -2), rhs_indices=slots)
    z = mx.gather_mm(z, layer.b, rhs_indices=slots)
    return y + z.reshape(y.shape)[back]


def pregathered(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """Each row's adapter copied when rows join, so that a step is an ordinary batched product."""
    slots = layer.rows.slots
    a, b = layer.once(lambda: (layer.a[slots], layer.b[slots]))
    return y + (x @ a.swapaxes(-1, -2)) @ b


def masked(layer: Tried, x: mx.array, y: mx.array) -> mx.array:
    """One product with all adapters side by side, and nothing left of those that are not a row's own."""
    a, b = layer.once(lambda: _side_by_side(layer))
    return mx.addmm(y, (x @ a) * layer.rows.mask, b)


def _side_by_side(layer: Tried) -> tuple[mx.array, mx.array]:
    slots = mx.array(layer.rows.distinct, dtype=mx.uint32)
    a, b = layer.a[slots], layer.b[slots]
    return mx.contiguous(a.reshape(-1, a.shape[-1]).T), mx.contiguous(b.reshape(-1, b.shape[-1]))


def usable(rows: Composition) -> dict[str, Trick]:
    """The tricks that this batch allows, by the names of the report's columns."""
    tricks: dict[str, Trick] = {
        "gathered": gathered,
        "gathered, (S, D, r)": gathered_wide,
        "shared": shared,
        "grouped": grouped,
        "pre-gathered": pregathered,
        "masked": masked,
    }
    if len(rows.distinct) > 1:
        del tricks["shared"]
    if rows.groups is None:
        del tricks["grouped"]
    return tricks
