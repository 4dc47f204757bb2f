"""Rows given logits by hand, as a forward pass would: for the tests of the sampler and its parts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_roster.core import Sampling
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler

V = 50
STOPS = (0, 7)
NEWLINE = 3
KINDS = ("repetition", "presence", "frequency")


def logits(count: int, seed: int = 0, size: int = V) -> mx.array:
    return 3 * mx.random.normal((count, size), key=mx.random.key(seed))


def sampling(**fields: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0} | fields))


class Spoken:
    """Rows and their sampler, given logits by hand as a forward pass would."""

    def __init__(self, *rows: Row) -> None:
        self.routing = Routing()
        self.rows = Rows(list(rows))
        self.sampler = Sampler(self.routing, STOPS, (NEWLINE,))

    def __call__(self, given: mx.array, inputs: Sequence[int] = ()) -> list[int]:
        self.routing.rows = self.rows
        self.routing.inputs = mx.array(list(inputs) or [1] * len(self.rows))[:, None]
        self.routing.logits = given[:, None]
        tokens: Any = self.sampler(given - mx.logsumexp(given, axis=-1, keepdims=True)).tolist()
        return list(tokens)


def batch(*asked: Sampling) -> Spoken:
    return Spoken(*[Row(0, one, seed=index) for index, one in enumerate(asked)])


def draws(row: Sampling, given: mx.array, count: int, seed: int = 0) -> Counter[int]:
    spoken = Spoken(Row(0, row, seed=seed))
    return Counter(spoken(given)[0] for _ in range(count))


class Fence:
    """A gate that allows some tokens, or all, and remembers what has been drawn."""

    def __init__(self, allowed: Collection[int] | None) -> None:
        self.allowed = allowed
        self.seen: list[int] = []
        self.error: str | None = None
        self.param = ""

    def advance(self, token: int) -> None:
        self.seen.append(token)

    def mask(self, words: np.ndarray) -> bool:
        if self.allowed is None:
            words.fill(0x5A5A5A5A)
            return False
        bits = words.view(np.uint32)
        for token in self.allowed:
            bits[token // 32] |= np.uint32(1 << (token % 32))
        return True


def drawn_at_random(chance: random.Random, size: int) -> Sampling:
    """Parameters within API.md's bounds, each there or not."""

    def maybe(field: str, value: Any) -> dict[str, Any]:
        return {field: value} if chance.random() < 0.4 else {}

    penalties = {
        **maybe("repetition_penalty", chance.uniform(0.5, 2.0)),
        **maybe("presence_penalty", chance.uniform(-2, 2)),
        **maybe("frequency_penalty", chance.uniform(-2, 2)),
    }
    sizes = [maybe(f"{kind}_context_size", chance.choice([0, 1, 3, 20, 1000])) for kind in KINDS]
    biased = {chance.randrange(size): chance.choice([-100.0, 100.0, chance.uniform(-5, 5)]) for _ in range(4)}
    return sampling(
        **penalties,
        **{field: value for one in sizes for field, value in one.items()},
        **maybe("logit_bias", biased),
        **maybe("min_tokens", 2),
        **maybe("top_p", chance.uniform(0.05, 1)),
        **maybe("top_k", chance.choice([0, 1, 2, 10, size - 1, size + 1, 2**40])),
        **maybe("min_p", chance.uniform(0, 0.3)),
        **maybe("xtc_probability", 1.0),
        xtc_threshold=chance.uniform(0, 0.5),
        temperature=chance.choice([0.0, 0.3, 1.0, 2.5]),
    )
