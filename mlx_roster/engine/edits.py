"""What requests do to logits before tokens are drawn: bias, penalties, least lengths, grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_roster.engine.groups import Group, column
from mlx_roster.engine.penalties import Penalties, Window, looks
from mlx_roster.engine.rows import Row

#: What a logit of -inf is taken for where grammar allows nothing else.
LOWEST = -1e30

#: Tokens that most penalties look at, at most: with a few hundred, width is nothing against a vocabulary.
FAR = 256

#: The share of edited rows up to which it is cheaper to draw twice for them than to copy the logits of all.
MOST_FEW = 0.25


@dataclass(slots=True)
class Edits:
    """Of a batch's rows, those whose logits are edited, and how. `gated` are some of them."""

    group: Group
    rows: list[Row]
    bias: tuple[mx.array, mx.array] | None
    penalties: list[tuple[Group, Penalties]]
    shortest: bool
    gated: Group | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Edits | None:
        """None where nobody asks for any."""
        group = Group.where([edited(row) for row in rows])
        if group is None:
            return None
        rows = [rows[index] for index in group.members]
        return cls(
            group,
            rows,
            _bias([row.sampling.logit_bias for row in rows]),
            _penalties(rows),
            any(row.gate is None and row.sampling.min_tokens > 0 for row in rows),
            Group.where([row.gate is not None for row in rows]),
        )

    @property
    def few(self) -> bool:
        """Whether most rows' logits are left as they are."""
        return self.group.share <= MOST_FEW

    def __call__(self, logits: mx.array, inputs: mx.array, drawn: int, stops: mx.array) -> mx.array:
        """Raw logits (B, V) to the edited ones (n, V) of the group, in float32.

        `inputs` (B, 1) are the tokens that came before, `drawn` how many were since the rows were last counted, and
        `stops` (s,) the end-of-sequence tokens.
        """
        if self.gated is not None:
            # The device is to have something to do while the host looks at the tokens that came before.
            mx.async_eval(inputs)  # type: ignore[no-untyped-call]
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        values = self.group.take(logits).astype(mx.float32)
        if self.bias is not None:
            ids, added = self.bias
            values = values.at[mx.arange(len(self.rows))[:, None], ids].add(added)
        newest = self.group.take(inputs) if self.penalties else inputs
        for group, penalties in self.penalties:
            values = group.put(values, penalties(group.take(values), group.take(newest)))
        if self.shortest:
            values = self._lengthen(values, drawn, stops)
        if self.gated is not None:
            values = self._constrain(values, inputs, drawn)
        return values

    def _lengthen(self, values: mx.array, drawn: int, stops: mx.array) -> mx.array:
        early = [row.gate is None and row.draws + drawn < row.sampling.min_tokens for row in self.rows]
        if not any(early) or not stops.size:
            return values
        ids = mx.broadcast_to(stops, (len(self.rows), stops.size))
        held = mx.where(column(early, mx.bool_), -mx.inf, mx.take_along_axis(values, ids, axis=-1))
        return mx.put_along_axis(values, ids, held, axis=-1)

    def _constrain(self, values: mx.array, inputs: mx.array, drawn: int) -> mx.array:
        assert self.gated is not None
        # Read as it is: to index it on the device would be to wait for the forward pass.
        newest: Any = inputs.tolist()
        vocabulary = values.shape[-1]
        words = np.zeros((len(self.gated.members), -(-vocabulary // 32)), dtype=np.int32)
        for member, mask in zip(self.gated.members, words, strict=True):
            row, [token] = self.rows[member], newest[self.group.members[member]]
            assert row.gate is not None
            if row.draws + drawn > 0:
                row.gate.advance(token)
            if not row.gate.mask(mask):
                mask.fill(-1)
        allowed = _unpacked(mx.array(words.view(np.uint32)), vocabulary)
        held = mx.maximum(self.gated.take(values), LOWEST)
        return self.gated.put(values, mx.where(allowed, held, -mx.inf))


def edited(row: Row) -> bool:
    """Whether anything is ever done to a row's logits."""
    sampling = row.sampling
    return row.gate is not None or bool(sampling.logit_bias) or looks(sampling) > 0 or sampling.min_tokens > 0


def _unpacked(words: mx.array, vocabulary: int) -> mx.array:
    """Bits (n, w) to booleans (n, V)."""
    bits = (words[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    return bits.astype(mx.bool_).reshape(len(words), -1)[:, :vocabulary]


def _bias(asked: Sequence[dict[int, float]]) -> tuple[mx.array, mx.array] | None:
    """Token ids (n, b) and what is added to each; shorter rows add nothing to token 0."""
    most = max(len(one) for one in asked)
    if most == 0:
        return None
    ids, added = np.zeros((len(asked), most), dtype=np.int32), np.zeros((len(asked), most), dtype=np.float32)
    for row, one in enumerate(asked):
        ids[row, : len(one)], added[row, : len(one)] = list(one), list(one.values())
    return mx.array(ids), mx.array(added)


def _penalties(rows: Sequence[Row]) -> list[tuple[Group, Penalties]]:
    """Each with its rows: all windows of one Penalties are as wide as the widest, so those who look far are apart."""
    looked = [looks(row.sampling) for row in rows]
    made = []
    for group in (Group.where([look <= FAR for look in looked]), Group.where([look > FAR for look in looked])):
        if group is None or not any(looked[index] for index in group.members):
            continue
        own = [rows[index] for index in group.members]
        window = Window([row.last() for row in own], [looked[index] for index in group.members])
        for index, row in enumerate(own):
            row.window = (window, index)
        made.append((group, Penalties.of([row.sampling for row in own], window)))
    return made
