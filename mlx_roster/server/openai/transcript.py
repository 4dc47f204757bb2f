"""What was asked and what was answered, for the log: only where the roster has `logs.prompts`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from mlx_roster.core import Generation
from mlx_roster.logs import fields, written
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.openai.counting import Choice
from mlx_roster.server.openai.saying import NOTHING, merged

logger = logging.getLogger(__name__)

#: So many characters of what is asked are logged, and so many of what is answered.
LONGEST = 10_000


@contextmanager
def transcribed(
    wanted: bool, exchange: Exchange, generations: Sequence[Generation], choices: Sequence[Choice]
) -> Iterator[None]:
    """Where it is `wanted`, a line once the block has ended, however it did."""
    if not wanted:
        yield
        return
    for choice in choices:
        choice.said = []
    try:
        yield
    finally:
        account, asked, answered = exchange.account, _asked(generations), _answered(choices)
        about = fields(
            event="prompt",
            request_id=exchange.request_id,
            model=account.model,
            adapter=account.adapter,
            asked=asked,
            answered=answered,
        )
        name = written(exchange.request_id)
        logger.info("request %s asked %s and was answered %s", name, asked, answered, extra=about)


def _asked(generations: Sequence[Generation]) -> str:
    tools = generations[0].tools
    asked = [msgspec.to_builtins(generation.prompt) for generation in generations]
    return _short([*asked, {"tools": tools.specs}] if tools is not None else asked)


def _answered(choices: Sequence[Choice]) -> str:
    answers: list[dict[str, Any]] = []
    for choice in choices:
        whole = merged(choice.said or [])
        aside = whole.aside or NOTHING
        calls = [{"name": call.name, "arguments": call.arguments} for call in aside.calls]
        said = {"text": whole.text, "reasoning": aside.reasoning, "calls": calls}
        answers.append({name: value for name, value in said.items() if value})
    return _short(answers)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]}... and {more} characters more"
