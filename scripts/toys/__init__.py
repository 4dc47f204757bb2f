"""What the toys among the test assets learn. A toy is a module with NAME and TEMPLATE; MARKERS, PIECES and `texts` for
its tokenizer; `lesson`, for endless examples to learn from; and `exam`, for those it must get right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A request as its chat template gets it, and the whole answer, as text that is generated."""

    messages: list[dict[str, Any]]
    answer: str
    tools: list[dict[str, Any]] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    #: The assistant's earlier messages are learned too.
    history: bool = False
