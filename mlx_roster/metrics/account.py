"""What one request came to: written while it is served, read once it is over, by the log and by the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Account:
    """One request. Times are in seconds of `time.monotonic`; what is not known, or does not apply, is None."""

    started: float
    ended: float | None = None
    #: "chat" or "text_completion", as OpenTelemetry calls them; None for all that generates nothing.
    operation: str | None = None
    #: The catalog's ids of what serves it, once that is known.
    model: str | None = None
    adapter: str | None = None
    #: Whose key it came with.
    caller: str | None = None
    #: HTTP's; 499 where the client left before its answer was through.
    status: int = 0
    #: Of the error that it ended with, also inside a stream.
    code: str | None = None
    stream: bool = False
    #: From the lease: how long it waited for its model, and how much of that was the load.
    waited: float | None = None
    loaded: float | None = None
    #: When the first token of any of its choices was there, and the last.
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    #: One for each choice that came to its end.
    finishes: list[str] = field(default_factory=list)
