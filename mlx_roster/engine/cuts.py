"""Which tokens are left to chance: top_p, min_p, XTC and top_k, each row's by its own parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_roster.core import Sampling
from mlx_roster.engine.groups import Group, column

#: A row that asks for at most so many tokens (top_k) needs only those in order, not the whole vocabulary.
FEW = 1024
#: More than any vocabulary holds.
ANY = 2**31 - 1


@dataclass(slots=True)
class Ordered:
    """Rows cut off by top_p, top_k or both, for which the `depth` likeliest tokens are put in order."""

    group: Group
    top_p: mx.array | None
    top_k: mx.array
    depth: int

    @classmethod
    def of(cls, asked: Sequence[tuple[float, int]]) -> list[Ordered]:
        """`asked` are top_p and top_k, 1 and 0 where they are off. A row's way does not hang on its neighbours."""
        few = [0 < top_k <= FEW for _, top_k in asked]
        ways = (
            ([small and top_p >= 1 for small, (top_p, _) in zip(few, asked, strict=True)], FEW),
            ([small and top_p < 1 for small, (top_p, _) in zip(few, asked, strict=True)], FEW),
            ([not small and (top_p < 1 or top_k > 0) for small, (top_p, top_k) in zip(few, asked, strict=True)], ANY),
        )
        return [
            cls._sharing(group, depth, [asked[index] for index in group.members])
            for flags, depth in ways
            if (group := Group.where(flags)) is not None
        ]

    @classmethod
    def _sharing(cls, group: Group, depth: int, asked: Sequence[tuple[float, int]]) -> Ordered:
        # Off is more than all the mass, so that rounding drops no tail.
        top_p = column([top_p if top_p < 1 else 2.0 for top_p, _ in asked])
        top_k = column([min(top_k, ANY) if top_k > 0 else ANY for _, top_k in asked], mx.int32)
        return cls(group, top_p if any(top_p < 1 for top_p, _ in asked) else None, top_k, depth)

    def least(self, values: mx.array) -> mx.array:
        """(n, V) to the least value (n, 1) that stays; all that equal it do.

        top_p keeps the likeliest tokens until their mass reaches it, top_k that many. Both keep an upper end of the row
        in order, so the shorter of them decides.
        """
        depth = min(self.depth, values.shape[-1])
        head = -values if depth == values.shape[-1] else mx.partition(-values, depth - 1, axis=-1)[:, :depth]
        falling = -mx.sort(head, axis=-1)
        count = mx.minimum(self.top_k, depth)
        if self.top_p is not None:
            mass = mx.exp(falling - falling[:, :1])
            whole = mass if depth == values.shape[-1] else mx.exp(values - falling[:, :1])
            above = mx.cumsum(mass, axis=-1, inclusive=False)
            inside = above < self.top_p * whole.sum(axis=-1, keepdims=True)
            count = mx.minimum(count, inside.sum(axis=-1, keepdims=True))
        # At least one survives, whatever was asked.
        return mx.take_along_axis(falling, mx.maximum(count - 1, 0), axis=-1)


@dataclass(slots=True)
class Excluded:
    """Rows with XTC: now and then the likeliest tokens are ruled out, all but the last that is likely enough.

    `ordered` are those of them with top_k, which counts what XTC has left.
    """

    group: Group
    probability: mx.array
    threshold: mx.array
    ordered: list[Ordered]

    @classmethod
    def of(cls, asked: Sequence[Sampling]) -> Excluded | None:
        """None where nobody has it."""
        group = Group.where([one.xtc_probability > 0 for one in asked])
        if group is None:
            return None
        held = [asked[index] for index in group.members]
        return cls(
            group,
            column([one.xtc_probability for one in held]),
            column([one.xtc_threshold for one in held]),
            Ordered.of([(1.0, one.top_k) for one in held]),
        )

    def __call__(self, values: mx.array, keys: mx.array, kept: mx.array) -> mx.array:
        """Of (n, V), whose rows have `keys` (n, 2) for their coins. Tokens that are `kept` (V,) are never ruled out."""
        share = mx.softmax(values, axis=-1)
        least = mx.where(share > self.threshold, share, mx.inf).min(axis=-1, keepdims=True)
        coin = mx.vmap(lambda key: mx.random.uniform(key=key))(keys)[:, None]
        # Without the coin nothing is as likely as that.
        least = mx.where(coin < self.probability, least, mx.inf)
        return _cut(mx.where((share > least) & ~kept, -mx.inf, values), self.ordered, None)


@dataclass(slots=True)
class Cuts:
    """Of rows that sample. `excluded` comes after all else."""

    ordered: list[Ordered]
    min_p: mx.array | None
    excluded: Excluded | None

    @classmethod
    def of(cls, asked: Sequence[Sampling]) -> Cuts | None:
        """None where nobody cuts off anything."""
        cuts = cls(
            Ordered.of([(one.top_p, 0 if one.xtc_probability > 0 else one.top_k) for one in asked]),
            column([_log(one.min_p) for one in asked]) if any(one.min_p > 0 for one in asked) else None,
            Excluded.of(asked),
        )
        return cuts if cuts.ordered or cuts.min_p is not None or cuts.excluded else None

    def __call__(self, values: mx.array, keys: mx.array, kept: mx.array) -> mx.array:
        """Float32 (n, V), with -inf for what is cut off; in mlx-lm's order, before temperature."""
        values = _cut(values, self.ordered, self.min_p)
        if self.excluded is not None:
            group = self.excluded.group
            values = group.put(values, self.excluded(group.take(values), group.take(keys), kept))
        return values


def _cut(values: mx.array, ordered: Sequence[Ordered], min_p: mx.array | None) -> mx.array:
    """-inf for what is below either; `min_p` are logarithms (n, 1), -inf where it is off."""
    if not ordered and min_p is None:
        return values
    least = mx.full((len(values), 1), -mx.inf) if min_p is None else values.max(axis=-1, keepdims=True) + min_p
    for one in ordered:
        part = one.least(one.group.take(values))
        least = one.group.put(least, mx.maximum(one.group.take(least), part))
    return mx.where(values >= least, values, -mx.inf)


def _log(min_p: float) -> float:
    return math.log(min(min_p, 1.0)) if min_p > 0 else -math.inf
