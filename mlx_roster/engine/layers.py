"""Layers of a base model with adapters stacked over them: each row of a batch gets what its own adapter adds.

A stack has one entry for each slot of the bank, in float32. Slot 0, and every slot whose adapter leaves the layer
alone, is zeros: a row with such a slot gets the layer's own output. Ranks are padded with zeros to the stack's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Rows
from mlx_roster.tensors import LoraPair, Target


class Adapted(Module):
    """A layer of the base model and its stacks. Sits in the model's tree where the layer was.

    `a` is (S, r, D) and `b` is (S, r, O), with the experts between S and r where there are any. Both have r outside: in
    the mixed batch of a decode step, mlx's matrix product on a CPU reads `a` 1.5 to 3 times as fast like this.
    """

    def __init__(self, inner: Module, target: Target, routing: Routing, slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["inner"] = inner
        self.inner = inner
        experts = (target.experts,) if target.kind == "experts" else ()
        self.a = mx.zeros((slots, *experts, 0, target.inputs))
        self.b = mx.zeros((slots, *experts, 0, target.outputs))
        self._target = target
        self._routing = routing
        self._filled: set[int] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        # Not as a Module does it: the stacks are no parameters of the model, and a step looks them up for every layer.
        object.__setattr__(self, name, value)

    @property
    def nbytes(self) -> int:
        """Bytes of the stacks."""
        return sum(stack.nbytes for stack in self.stacks())

    def stacks(self) -> list[mx.array]:
        """All that must be evaluated after `put` or `grow`."""
        return [self.a, self.b]

    def grow(self, slots: int) -> None:
        """Make room for more slots; what is there keeps its place."""
        self._pad(slots - self.a.shape[0], 0)

    def put(self, slot: int, pair: LoraPair | None, head: LoraPair | None) -> None:
        """Fill a slot, with zeros where the adapter leaves this layer alone. Lazy: the caller evaluates `stacks`."""
        if pair is None and head is None:
            if slot in self._filled:
                self._filled.discard(slot)
                self._write(slot, 0, None, None)
            return
        self._filled.add(slot)
        self._fill(slot, pair, head)

    def _fill(self, slot: int, pair: LoraPair | None, head: LoraPair | None) -> None:
        assert pair is not None
        self._reserve(pair.a.shape[-1])
        self._write(slot, pair.a.shape[-1], pair.a.swapaxes(-1, -2), pair.b)

    def _reserve(self, rank: int) -> None:
        if rank > self.a.shape[-2]:
            self._pad(0, rank - self.a.shape[-2])

    def _pad(self, slots: int, rank: int) -> None:
        widths = [(0, slots), *[(0, 0)] * (self.a.ndim - 3), (0, rank), (0, 0)]
        self.a = mx.pad(self.a, widths)
        self.b = mx.pad(self.b, widths)

    def _write(self, slot: int, rank: int, a: mx.array | None, b: mx.array | None) -> None:
        for stack, value in ((self.a, a), (self.b, b)):
            entry = mx.zeros(stack.shape[1:])
            if value is not None:
                entry[..., :rank, :] = value
            stack[slot] = entry

    def _touching(self) -> Rows | None:
        """The rows of the batch, or None where none has an adapter that changes this layer."""
        rows = self._routing.rows
        return None if self._filled.isdisjoint(rows.distinct) else rows


class AdaptedLinear(Adapted):
    """Linear and QuantizedLinear. With DoRA, a slot also scales the layer's own output: it has `scale` and `shift`.

    Those are (S, O), or None while no adapter with a magnitude has come: the output without its bias times `scale`, and
    the bias; `b` carries the scale as well.
    """

    def __init__(self, inner: Module, target: Target, routing: Routing, slots: int) -> None:
        super().__init__(inner, target, routing, slots)
        self.scale: mx.array | None = None
        self.shift: mx.array | None = None
        self._norms: mx.array | None = None
        self._alone: tuple[int, mx.array, mx.array] | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.inner(x)
        rows = self._touching()
        if rows is None:
            return y
        z = x if x.dtype == mx.float32 else x.astype(mx.float32)
        if rows.single is not None:
            a, b = self._only(rows.single)
            if self.scale is None and y.dtype == mx.float32:
                return mx.addmm(y, z @ a, b)
            return self._scaled(y, rows.single) + ((z @ a) @ b).astype(y.dtype)
        if z.ndim != 3 or z.shape[0] != len(rows):
            # Whatever a model does to a batch, rows stay its outermost dimension.
            z = z.reshape(len(rows), -1, z.shape[-1])
        z = mx.gather_mm(z, self.a.swapaxes(-1, -2), rhs_indices=rows.slots)
        z = mx.gather_mm(z, self.b, rhs_indices=rows.slots).astype(y.dtype)
        if self.scale is None:
            return y + z.reshape(y.shape)
        return (self._scaled(y.reshape(z.shape), rows.slots[:, None]) + z).reshape(y.shape)

    def stacks(self) -> list[mx.array]:
        return [stack for stack in (self.a, self.b, self.scale, self.shift) if stack is not None]

    def _only(self, slot: int) -> tuple[mx.array, mx.array]:
        """One slot's matrices, to be used step after step: taking them apart costs as much as multiplying does."""
        if self._alone is None or self._alone[0] != slot:
            # Slices, since an index would copy.
            one = slice(slot, slot + 1)
            self._alone = slot, self.a[one].squeeze(0).T, self.b[one].squeeze(0)
        return self._alone[1:]

    def _scaled(self, y: mx.array, slots: mx.array | int) -> mx.array:
        """The layer's own output as DoRA wants it, in its own type."""
        if self.scale is None:
            return y
        scaled = y * self.scale[slots]
        return (scaled if self.shift is None else scaled + self.shift[slots]).astype(y.dtype)

    def _pad(self, slots: int, rank: int) -> None:
        self._alone = None
        super()._pad(slots, rank)
        if self.scale is not None:
            self.scale = mx.pad(self.scale, [(0, slots), (0, 0)], constant_values=mx.array(1.0))
        if self.shift is not None:
            self.shift = mx.pad(self.shift, [(0, slots), (0, 0)])

    def _write(self, slot: int, rank: int, a: mx.array | None, b: mx.array | None) -> None:
        # A view of the stack would make writing to it a copy.
        self._alone = None
        super()._write(slot, rank, a, b)
        if self.scale is not None:
            self.scale[slot] = mx.ones(self.scale.shape[1:])
        if self.shift is not None:
            self.shift[slot] = mx.zeros(self.shift.shape[1:])

    def _fill(self, slot: int, pair: LoraPair | None, head: LoraPair | None) -> None:
        super()._fill(slot, pair, head)
        if pair is None or pair.magnitude is None:
            return
        if self.scale is None:
            self.scale = mx.ones((self.a.shape[0], self._target.outputs))
            if "bias" in self.inner:
                self.shift = mx.zeros(self.scale.shape)
        scale = _scale(pair.magnitude, self._norm(pair))
        self.scale[slot] = scale
        self.b[slot] *= scale
        if self.shift is not None:
            self.shift[slot] = self.inner.bias * (1 - scale)

    def _norm(self, pair: LoraPair) -> mx.array:
        inner: Any = self.inner
        if self._norms is None:
            self._norms = _squares(inner)
        bias = inner.bias if "bias" in inner else 0.0
        return _norms(self._norms, lambda x: inner(x.astype(_dtype(inner))) - bias, pair.b.T, pair.a.T)


class AdaptedEmbedding(Adapted):
    """Embedding and QuantizedEmbedding, as a lookup and as the tied head.

    Both may have an adapter of their own: they share the stacks, and `uses` (S, 2, r) says which rank is whose (0 the
    lookup's, 1 the head's). With DoRA, `scale` (S, 2, D) is what a token's own row, or logit, is multiplied by.
    """

    def __init__(self, inner: Module, target: Target, routing: Routing, slots: int) -> None:
        super().__init__(inner, target, routing, slots)
        # Tokens outside, ranks inside: a lookup takes whole entries.
        self.a = mx.zeros((slots, target.inputs, 0))
        self.uses = mx.zeros((slots, 2, 0))
        self.scale: mx.array | None = None
        self._norms: mx.array | None = None

    def __call__(self, tokens: mx.array) -> mx.array:
        y: mx.array = self.inner(tokens)
        rows = self._touching()
        if rows is None:
            return y
        each = rows.slots.reshape(-1, 1)
        ids = tokens.reshape(len(rows), -1)
        z = self.a[each, ids] * self.uses[rows.slots, 0][:, None]
        z = mx.gather_mm(z, self.b, rhs_indices=rows.slots)
        own = y.reshape(z.shape)
        if self.scale is not None:
            own = own * self.scale[each, 0, ids][..., None]
        return (own + z).reshape(y.shape).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """The tied head's logits."""
        inner: Any = self.inner
        y: mx.array = inner.as_linear(x)
        rows = self._touching()
        if rows is None:
            return y
        z = x.astype(mx.float32).reshape(len(rows), -1, x.shape[-1])
        z = mx.gather_mm(z, self.b.swapaxes(-1, -2), rhs_indices=rows.slots)
        z = z * self.uses[rows.slots, 1][:, None]
        z = mx.gather_mm(z, self.a.swapaxes(-1, -2), rhs_indices=rows.slots)
        own = y.reshape(z.shape)
        if self.scale is not None:
            own = own * self.scale[rows.slots, 1][:, None]
        return (own + z).reshape(y.shape).astype(y.dtype)

    def stacks(self) -> list[mx.array]:
        return [stack for stack in (self.a, self.b, self.uses, self.scale) if stack is not None]

    def _pad(self, slots: int, rank: int) -> None:
        self.a = mx.pad(self.a, [(0, slots), (0, 0), (0, rank)])
        self.b = mx.pad(self.b, [(0, slots), (0, rank), (0, 0)])
        self.uses = mx.pad(self.uses, [(0, slots), (0, 0), (0, rank)])
        if self.scale is not None:
            self.scale = mx.pad(self.scale, [(0, slots), (0, 0), (0, 0)], constant_values=mx.array(1.0))

    def _reserve(self, rank: int) -> None:
        if rank > self.a.shape[-1]:
            self._pad(0, rank - self.a.shape[-1])

    def _write(self, slot: int, rank: int, a: mx.array | None, b: mx.array | None) -> None:
        for stack in (self.a, self.b, self.uses):
            stack[slot] = mx.zeros(stack.shape[1:])
        if self.scale is not None:
            self.scale[slot] = mx.ones(self.scale.shape[1:])

    def _fill(self, slot: int, pair: LoraPair | None, head: LoraPair | None) -> None:
        parts = [(pair, (0, 1))] if pair is head else [(pair, (0,)), (head, (1,))]
        self._reserve(sum(part.a.shape[-1] for part, _ in parts if part is not None))
        self._write(slot, 0, None, None)
        start = 0
        for part, uses in parts:
            if part is None:
                continue
            a, end = part.a, start + part.a.shape[-1]
            if part.magnitude is not None:
                scale = _scale(part.magnitude, self._norm(part))
                a = a * scale[:, None]
                if self.scale is None:
                    self.scale = mx.ones((self.a.shape[0], 2, self._target.inputs))
                for use in uses:
                    self.scale[slot, use] = scale
            self.a[slot, :, start:end] = a
            self.b[slot, start:end] = part.b
            for use in uses:
                self.uses[slot, use, start:end] = mx.ones(end - start)
            start = end

    def _norm(self, pair: LoraPair) -> mx.array:
        inner: Any = self.inner
        if self._norms is None:
            self._norms = _squares(inner)
        return _norms(self._norms, lambda x: inner.as_linear(x.astype(_dtype(inner))), pair.a, pair.b)


class AdaptedExperts(Adapted):
    """SwitchLinear and QuantizedSwitchLinear, inside an `AdaptedSwitch`."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.inner(x, indices, sorted_indices=sorted_indices)
        if self._touching() is None:
            return y
        picks = self._routing.picks(indices, self._target.experts, sorted_indices)
        z = mx.gather_mm(x.astype(mx.float32), self.a.swapaxes(-1, -2), rhs_indices=picks)
        z = mx.gather_mm(z, self.b, rhs_indices=picks)
        return y + z.astype(y.dtype)


class AdaptedSwitch(Module):
    """Experts behind a router (SwitchGLU, SwitchMLP): notes their choice, since the layers inside may see it sorted."""

    def __init__(self, inner: Module, routing: Routing) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self._routing = routing

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        self._routing.choose(indices)
        y: mx.array = self.inner(x, indices)
        return y


def _scale(magnitude: mx.array, norms: mx.array) -> mx.array:
    """What brings rows of these norms to a magnitude; a row of zeros stays one."""
    return mx.where(norms > 0, magnitude / norms, 0)


def _dtype(layer: Any) -> mx.Dtype:
    """What the layer computes in."""
    weight: mx.array = layer.scales if "scales" in layer else layer.weight
    return weight.dtype if mx.issubdtype(weight.dtype, mx.floating) else mx.float32


def _squares(layer: Any) -> mx.array:
    """The squared norms of the rows of a layer's weight, (rows,) in float32."""
    weight = layer.weight
    if "scales" in layer:
        weight = mx.dequantize(
            weight,
            layer.scales,
            layer.get("biases"),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
    squares: mx.array = weight.astype(mx.float32).square().sum(axis=-1)
    return squares


def _norms(squares: mx.array, product: Callable[[mx.array], mx.array], left: mx.array, right: mx.array) -> mx.array:
    """The norms of the rows of W + left @ right, where `squares` are those of W's and `product(x)` is x @ W.T.

    The weight itself is not needed: it may be quantized, and is as large as the layer.
    """
    crossed = (left * product(right).astype(mx.float32).T).sum(axis=-1)
    added = ((left @ (right @ right.T)) * left).sum(axis=-1)
    return mx.sqrt(mx.maximum(squares + 2 * crossed + added, 0))
