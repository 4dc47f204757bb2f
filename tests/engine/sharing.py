"""A model whose keys and values outweigh all else, and how the tests of memory and of limits talk to it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlx_roster.engine.memory import GROWTH
from tests.engine import tiny
from tests.engine.tiny import Driven, words

#: Of keys and values that outweigh all else: 8 KiB a token.
WIDE: dict[str, Any] = {
    "head_dim": 128,
    "num_key_value_heads": 4,
    # No logit stands for it: every answer has its full length.
    "eos_token_id": 5000,
}
PER_TOKEN = 8 * 2**10

PROMPT = 40
ANSWER = 30
#: What is foreseen for one sequence of these.
ONE = (PROMPT + ANSWER + GROWTH) * PER_TOKEN


def ask(engine: Driven, seed: int, tokens: int = ANSWER) -> int:
    return engine.ask(tiny.request(words(seed, PROMPT), tokens))


def said_alone(alone: Any, seed: int, tokens: int = ANSWER) -> list[int]:
    """What mlx-lm says to what `ask` asks."""
    return [token for token, _ in generate_step(mx.array(words(seed, PROMPT)), alone, max_tokens=tokens)]


def resting(engine: Driven) -> int:
    """Bytes in use with nothing to do."""
    engine.rest()
    return engine.said.reports[-1].active


def together(engine: Driven, since: int = 0) -> int:
    """How many were decoded in one step at most."""
    return max(map(len, engine.said.frames[since:]))
