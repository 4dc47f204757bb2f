"""One running generation, and what is said of it between the engine's parts. No mlx, no threads, no clock."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlx_roster.core import AdapterSource, FinishReason, Sampling
from mlx_roster.engine.prompts import Prompt
from mlx_roster.engine.text import Voice
from mlx_roster.errors import RosterError
from mlx_roster.tensors import AdapterWeights

#: A log-probability, None for a prompt's first token, and the likeliest ids with theirs, in falling order.
Score = tuple[float | None, Several[tuple[int, float]]]


class Token(NamedTuple):
    """What a step has for one sequence: mostly a token.

    `finish` is "stop" for an end-of-sequence token, "length" for the last one allowed. `id` is None where there is no
    token: while a prompt is being scored, of whose next tokens the scores are `prompt`. Of the tokens that were drafted
    for its step, so many were `accepted`, and so many `rejected`.
    """

    sequence: int
    id: int | None
    finish: FinishReason | None = None
    score: Score | None = None
    prompt: Several[Score] = ()
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter of a sequence. `weights` is None where it lay in a slot already when the sequence was prepared."""

    identity: str
    source: AdapterSource
    weights: AdapterWeights | None


@dataclass(slots=True, eq=False)
class Fork:
    """What the sequences of one prompt share: the first to run computes it, and the others wait for its `caches`.

    These are of all but the prompt's last token, and nobody's to change; `cached` of the tokens were there before.
    `heirs` sequences have not begun yet.
    """

    heirs: int
    leader: int | None = None
    caches: Any = None
    cached: int = 0

    @property
    def pending(self) -> bool:
        """Whether somebody is computing the prompt."""
        return self.caches is None and self.leader is not None

    def joined(self, number: int) -> None:
        """A sequence runs: with the caches where they are there, else to compute them."""
        if self.caches is None:
            self.leader = number
        self.dropped()

    def dropped(self) -> None:
        """There is one less to begin. After the last one nobody needs the caches."""
        self.heirs -= 1
        if self.heirs <= 0:
            self.caches = None

    def left(self, number: int) -> None:
        """A sequence runs no more: if it was to compute the prompt and has not, another will."""
        if self.leader == number:
            self.leader = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation, prepared: `prompt` has been checked, and `max_tokens` fits the context behind it.

    `cached` of the prompt's tokens had been computed before, for another. `prefix` is what there is of them where the
    engine has looked for them already; it is of no concern here. `gate` says which tokens a grammar allows. Each token
    is scored beside the `top` likeliest, if that is not None; with `scores`, so are the prompt's. The text begins with
    `opening`. `rank` is how many prompts of the same request come before its own, and `turn` when its
    own comes. `request` is the id of that request.
    """

    id: int
    prompt: Prompt
    max_tokens: int
    sampling: Sampling
    voice: Voice
    adapter: Adapter | None = None
    gate: Any = None
    fork: Fork | None = None
    top: int | None = None
    scores: bool = False
    opening: str = ""
    draft: str | None = None
    draft_tokens: int | None = None
    rank: int = 0
    turn: int = 0
    slot: int = 0
    cached: int = 0
    scored: int = 0
    accepted: int = 0
    rejected: int = 0
    completion: int = 0
    overtaken: int = 0
    fetching: bool = False
    prefix: Any = None
    request: str = ""

    @property
    def key(self) -> str | None:
        """Whose caches it can begin with. Not a name: what that means may change."""
        return None if self.adapter is None else self.adapter.identity


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop a sequence, if it is still there."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A sequence that could not be prepared, or cannot go on. `request` is whose it is."""

    sequence: int
    error: RosterError
    request: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The adapter of a waiting sequence, with its weights again."""

    sequence: int
    adapter: Adapter
