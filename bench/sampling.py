"""What drawing a step's tokens costs, by what the rows of a batch ask for.

    python -m bench.sampling                            vocabularies of 32,000 and 150,000, 32 rows
    python -m bench.sampling --vocabularies 32000 --rounds 9

Random logits in float32, and a forward pass that is free: what is timed is the sampler, from logits to tokens on the
host. All sides have their turn in each round; a time is the median, and so is a ratio of two within the same round.
"Equal" are batches of nothing but one of the different rows: for rows that differ in which fields they have, the mean
of all such batches.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from bench.measure import take_turns
from mlx_roster.core import Sampling
from mlx_roster.engine.routed import Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.engine.sampling import Sampler

ROWS = 32
PROMPT = 100
WARM = 1

#: What one feature adds is its row less the first, in which nothing but temperature is asked for.
FEATURES: dict[str, dict[str, Any]] = {
    "temperature": {},
    "greedy": {"temperature": 0.0},
    "min_p": {"min_p": 0.05},
    "top_k 40": {"top_k": 40},
    "top_k 40 and top_p 0.9": {"top_k": 40, "top_p": 0.9},
    "top_p 0.9": {"top_p": 0.9},
    "xtc": {"xtc_probability": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "all three penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logit_bias of 300": {"logit_bias": {7 * token: -1.0 for token in range(300)}},
    "all of it": {
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "xtc_probability": 0.5,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {7 * token: -1.0 for token in range(300)},
    },
}


class Drawing:
    """A batch that draws, over and over, from the same logits."""

    clock: Callable[[], float] = time.perf_counter

    def __init__(self, logits: mx.array, rows: Sequence[Row]) -> None:
        self._routing = Routing()
        self._sampler = Sampler(self._routing, (0,), (1,))
        self._rows = Rows(rows)
        self._logits = logits
        self._inputs = mx.zeros((len(rows), 1), dtype=mx.int32)
        for _ in range(WARM):
            self()

    def __call__(self) -> float:
        """Seconds for one step's tokens."""
        self._routing.rows, self._routing.inputs, self._routing.logits = self._rows, self._inputs, self._logits
        begun = Drawing.clock()
        tokens = self._sampler(self._logits[:, 0])
        mx.eval(tokens)
        elapsed = Drawing.clock() - begun
        for row in self._rows.once(tuple):
            row.scores.clear()
        self._inputs = tokens[:, None]
        return elapsed


def different(seed: int) -> Sampling:
    """Parameters drawn at random, with each field there or not, as clients send them."""
    chance = random.Random(seed)

    def maybe(field: str, value: Any) -> dict[str, Any]:
        return {field: value} if chance.random() < 0.4 else {}

    return Sampling(
        temperature=chance.choice([0.0, 0.3, 0.7, 1.0, 1.3]),
        **maybe("top_p", chance.uniform(0.5, 0.99)),
        **maybe("top_k", chance.choice([20, 40, 100])),
        **maybe("min_p", chance.uniform(0.01, 0.1)),
        **maybe("xtc_probability", chance.uniform(0.1, 0.9)),
        **maybe("repetition_penalty", chance.uniform(1.01, 1.5)),
        **maybe("repetition_context_size", chance.choice([10, 64, 200])),
        **maybe("presence_penalty", chance.uniform(-1, 1)),
        **maybe("frequency_penalty", chance.uniform(-1, 1)),
        **maybe("logit_bias", {chance.randrange(30000): chance.uniform(-5, 5) for _ in range(10)}),
    )


def full(seed: int) -> Sampling:
    """Every field there, each with a value of its own."""
    chance = random.Random(seed)
    return Sampling(
        temperature=chance.uniform(0.3, 1.3),
        top_p=chance.uniform(0.5, 0.99),
        top_k=chance.randrange(20, 100),
        min_p=chance.uniform(0.01, 0.1),
        xtc_probability=chance.uniform(0.1, 0.9),
        repetition_penalty=chance.uniform(1.01, 1.5),
        repetition_context_size=chance.randrange(10, 200),
        presence_penalty=chance.uniform(-1, 1),
        frequency_penalty=chance.uniform(-1, 1),
        logit_bias={chance.randrange(30000): chance.uniform(-5, 5) for _ in range(10)},
    )


def nucleus(seed: int) -> Sampling:
    """What most clients send: a temperature and top_p."""
    chance = random.Random(seed)
    return Sampling(temperature=chance.uniform(0.3, 1.3), top_p=chance.uniform(0.5, 0.99))


def rows(asked: Sequence[Sampling], top: int | None = None) -> list[Row]:
    """A row for each, after a prompt of random tokens."""
    recent = np.random.default_rng(0).integers(0, 30000, (len(asked), PROMPT), dtype=np.int32)
    return [Row(0, one, seed=seed, recent=recent[seed], top=top) for seed, one in enumerate(asked)]


def mixes(logits: mx.array, count: int) -> tuple[dict[str, Drawing], list[Drawing]]:
    """Sides by name, and batches of equal rows: of each of the different ones one."""
    named = {}
    for name, make in (("full", full), ("nucleus", nucleus)):
        named[f"{name}, equal"] = Drawing(logits, rows([make(0)] * count))
        named[f"{name}, different"] = Drawing(logits, rows([make(seed) for seed in range(count)]))
    named["at random, different"] = Drawing(logits, rows([different(seed) for seed in range(count)]))
    for name, fields in FEATURES.items():
        named[name] = Drawing(logits, rows([Sampling(**fields)] * count))
    named["scores of 5 on one row"] = Drawing(logits, [*rows([Sampling()], top=5), *rows([Sampling()] * (count - 1))])
    return named, [Drawing(logits, rows([different(seed)] * count)) for seed in range(count)]


def measure(vocabulary: int, count: int, rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each side, one sample for each round."""
    samples: dict[str, list[float]] = defaultdict(list)
    logits = 3 * mx.random.normal((count, 1, vocabulary), key=mx.random.key(0))
    mx.eval(logits)
    named, equal = mixes(logits, count)
    sides: list[tuple[str, Callable[[], float]]] = list(named.items())
    sides.append(("at random, equal", lambda: statistics.fmean(drawing() for drawing in equal)))
    for number in range(rounds):
        take_turns(samples, number, sides, say)
    return samples


def table(vocabulary: int, samples: dict[str, list[float]]) -> None:
    """Times and ratios."""
    print(f"\nvocabulary {vocabulary}")
    for name, times in samples.items():
        added = statistics.median(time - base for time, base in zip(times, samples["temperature"], strict=True))
        print(f"  {name:28} {1000 * statistics.median(times):8.2f} ms  {1000 * added:+8.2f}")
    for name in ("full", "nucleus", "at random"):
        pairs = zip(samples[f"{name}, different"], samples[f"{name}, equal"], strict=True)
        ratios = sorted(different / equal for different, equal in pairs)
        middle = statistics.median(ratios)
        print(f"  {name}: different over equal {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), target ≤ 1.2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 150000])
    parser.add_argument("--cpu", action="store_true", help="processor time, where others use the machine, too")
    parser.add_argument("--verbose", action="store_true", help="say every sample")
    options = parser.parse_args()
    if options.cpu:
        Drawing.clock = time.process_time
    for vocabulary in options.vocabularies:
        say = print if options.verbose else lambda _: None
        table(vocabulary, measure(vocabulary, options.rows, options.rounds, say))


if __name__ == "__main__":
    main()
