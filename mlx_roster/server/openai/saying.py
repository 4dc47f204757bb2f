"""What a sequence has said, put together from its Deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_roster.core import Aside, CallDelta, Delta, FinishReason, Usage

NOTHING = Aside()


@dataclass(frozen=True, slots=True)
class Answered:
    """One sequence, collected."""

    text: str
    finish: FinishReason
    usage: Usage
    aside: Aside = NOTHING


def merged(deltas: Sequence[Delta]) -> Delta:
    """Deltas of one sequence, in their order, as one. Of none at all, one that says nothing."""
    if len(deltas) == 1:
        return deltas[0]
    asides = [delta.aside for delta in deltas if delta.aside is not None]
    last = deltas[-1] if deltas else Delta(0, "")
    text = "".join([delta.text for delta in deltas])
    aside = _joined(asides) if asides else None
    return Delta(last.sequence, text, last.finish, last.usage, aside, sum([delta.tokens for delta in deltas]))


def _joined(asides: Sequence[Aside]) -> Aside:
    return Aside(
        "".join([aside.reasoning for aside in asides]),
        _joined_calls(call for aside in asides for call in aside.calls),
        [scored for aside in asides for scored in aside.scores],
        [scored for aside in asides for scored in aside.prompt],
    )


def _joined_calls(pieces: Iterable[CallDelta]) -> list[CallDelta]:
    """All pieces of each call as one, in the order in which the calls began."""
    calls: dict[int, list[CallDelta]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return [
        CallDelta(index, "".join([piece.arguments for piece in said]), said[0].id, said[0].name)
        for index, said in calls.items()
    ]
