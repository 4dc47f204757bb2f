"""What a response's choices come to, counted while they are said: for its request's Account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlx_roster.core import Delta, Usage
from mlx_roster.metrics import Account
from mlx_roster.registry.ports import Stream

#: Where the seconds from token to token go, by the names of a model and of its adapter.
Gaps = Callable[[str, str | None], Callable[[float], None]]


class Choice:
    """One sequence, as far as it has come.

    `gap` is told the seconds from token to token. Those that are heard of together share the time since the last one
    evenly; those that come with the very first have none.
    """

    __slots__ = ("_account", "_first", "_gap", "_last", "end", "said", "stream", "tokens")

    def __init__(self, stream: Stream, account: Account, gap: Callable[[float], None]) -> None:
        self.stream = stream
        self.tokens = 0
        #: Its last Delta, once it is there.
        self.end: Delta | None = None
        #: All its Deltas, where somebody wants to read them afterwards.
        self.said: list[Delta] | None = None
        self._account = account
        self._gap = gap
        self._first = 0.0
        self._last: float | None = None

    @property
    def generating(self) -> float:
        """Seconds from its first token to its last."""
        return 0.0 if self._last is None else self._last - self._first

    @property
    def usage(self) -> Usage | None:
        """What it came to, if it has come to its end."""
        return None if self.end is None else self.end.usage

    def heard(self, deltas: Sequence[Delta]) -> None:
        """These have come, in one wake-up. Called for each, before anything is made of it: this is the hot path."""
        tokens = self.add(deltas)
        if not tokens:
            return
        now = time.monotonic()
        if self._account.first is None:
            self._account.first = now
        if self._last is None:
            self._first = now
        else:
            each = (now - self._last) / tokens
            for _ in range(tokens):
                self._gap(each)
        self._last = now

    def add(self, deltas: Sequence[Delta]) -> int:
        """Count these, whenever they came. Returns how many tokens that are."""
        tokens = 0
        for delta in deltas:
            tokens += delta.tokens
            if delta.finish is not None:
                self.end = delta
        self.tokens += tokens
        if self.said is not None:
            self.said += deltas
        return tokens


@contextmanager
def counted(
    streams: Sequence[Stream], n: int, account: Account, gap: Callable[[float], None]
) -> Iterator[list[Choice]]:
    """The streams' choices; each `n` in turn are of one prompt. However the block ends, `account` has their tokens."""
    choices = [Choice(stream, account, gap) for stream in streams]
    try:
        yield choices
    finally:
        for choice in choices:
            # What was generated, and not sent any more.
            choice.add(choice.stream.waiting())
        _settle(choices, n, account)


def _settle(choices: Sequence[Choice], n: int, account: Account) -> None:
    for begin in range(0, len(choices), n):
        told = [choice.usage for choice in choices[begin : begin + n]]
        if (first := next(filter(None, told), None)) is not None:
            # The prompt counts once, and as its first choice has it: `usage` says the same.
            account.prompt_tokens += first.prompt
            account.cached_tokens += first.cached
    account.finishes += [choice.end.finish for choice in choices if choice.end is not None and choice.end.finish]
    for choice in choices:
        usage = choice.usage
        tokens = choice.tokens if usage is None else usage.completion
        account.completion_tokens += tokens
        account.further_tokens += max(0, tokens - 1)
        account.generating += choice.generating
        if usage is not None:
            account.reasoning_tokens += usage.reasoning
            account.accepted_tokens += usage.accepted
            account.rejected_tokens += usage.rejected
