"""What a row that is held to a grammar costs the others in its batch.

    python -m bench.constrained                         32 rows over a small base, vocabularies of 32,000 and 150,000

mlx-lm's BatchGenerator with the engine's sampler, in one process and without HTTP, over a random llama and an invented
byte-level vocabulary. The grammar is llguidance's for an array of objects, through the engine's own gates. One sample
is the mean of some steps; a ratio is taken within each round, to the same batch without a grammar.
"""

from __future__ import annotations

import argparse
import random
import statistics
import string
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.measure import take_turns
from bench.models import SMALL
from mlx_roster.core import Format, Generation, Sampling, Text
from mlx_roster.engine.grammar import Grammars
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Gate, Row, Rows
from mlx_roster.engine.sampling import Sampler
from mlx_roster.workers.blas import limit_threads

ROWS = 32
PROMPT = 16
STEPS = 8
END = "<|end|>"
SCHEMA = """{"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}, "count":
{"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}},
"required": ["name", "count", "tags"], "additionalProperties": false}}"""


class Endless(Gate):
    """A gate that keeps the outermost array from ending, by allowing no token with which one ends but a tag's."""

    def __init__(self, gate: Gate, closing: np.ndarray) -> None:
        self._gate = gate
        self._closing = closing
        self.error: str | None = None

    def advance(self, token: int) -> None:
        self._gate.advance(token)

    def mask(self, words: np.ndarray) -> bool:
        self._gate.mask(words)
        left = words & ~self._closing
        if left.any():
            words[:] = left
        return True


def tokenizer(vocabulary: int) -> Any:
    """Bytes, and what random pairs of tokens make, all printable."""
    chance = random.Random(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = {token: index for index, token in enumerate([END, *letters])}, []
    parts = [*string.ascii_letters, *string.digits, *'":,{}[] ']
    parts = [part if part != " " else "Ġ" for part in parts]
    while len(tokens) < vocabulary:
        left, right = chance.choice(parts), chance.choice(parts)
        if left + right not in tokens and len(left + right) < 12:
            tokens[left + right] = len(tokens)
            merges.append((left, right))
            parts.append(left + right)
    backend = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END))


def gates(vocabulary: int) -> Callable[[], Gate]:
    """Makes gates."""
    words = tokenizer(vocabulary)
    grammars = Grammars(words, vocabulary)
    asked = Generation(prompt=Text(""), max_tokens=1, format=Format(SCHEMA))
    ending = np.array(["]" in token for token in words.convert_ids_to_tokens(list(range(vocabulary)))])
    padded = np.pad(ending, (0, -len(ending) % 32))
    closing = np.packbits(padded, bitorder="little").view(np.int32)

    def make() -> Gate:
        gate = grammars.gate(asked, [])
        assert gate is not None
        return Endless(gate, closing)

    return make


@contextmanager
def decoding(model: Any, rows: list[Row], clock: Callable[[], float]) -> Iterator[Callable[[], float]]:
    """Seconds of a step of a batch that has these rows, and never ends."""
    routing = Routing()
    generator = BatchGenerator(
        Routed(model, routing), sampler=Sampler(routing, (0,)), completion_batch_size=len(rows), prefill_batch_size=16
    )
    chance = random.Random(0)
    with closing(generator):
        generator.insert(
            [chance.choices(range(1, 300), k=PROMPT) for _ in rows],
            [10**9] * len(rows),
            caches=[[*make_prompt_cache(model), Rows([row])] for row in rows],
        )
        while len(generator.next()[1]) < len(rows):
            pass

        def sample() -> float:
            begun = clock()
            for _ in range(STEPS):
                generator.next()
            return (clock() - begun) / STEPS

        sample()
        yield sample


def measure(
    vocabulary: int, rounds: int, clock: Callable[[], float], say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of a step, one sample of each side in each round."""
    samples: dict[str, list[float]] = defaultdict(list)
    model = llama.Model(
        llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, vocab_size=vocabulary, **SMALL)  # type: ignore[arg-type]
    )
    mx.eval(model.parameters())
    limit_threads(mx.get_active_memory())
    gate = gates(vocabulary)
    with ExitStack() as stack:
        sides = []
        for name, constrained in (("free", 0), ("one constrained", 1), ("all constrained", ROWS)):
            rows = [
                Row(0, Sampling(temperature=0.7), seed=seed, gate=gate() if seed < constrained else None)
                for seed in range(ROWS)
            ]
            sides.append((name, stack.enter_context(decoding(model, rows, clock))))
        for number in range(rounds):
            take_turns(samples, number, sides, say)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 150000])
    parser.add_argument("--cpu", action="store_true", help="processor time, where others use the machine, too")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    for vocabulary in options.vocabularies:
        samples = measure(vocabulary, options.rounds, clock, lambda _: None)
        print(f"\nvocabulary {vocabulary}")
        for name, times in samples.items():
            ratios = sorted(time / free for time, free in zip(times, samples["free"], strict=True))
            middle = statistics.median(ratios)
            print(
                f"  {name:18} {1000 * statistics.median(times):8.2f} ms a step, {middle:.3f} of free "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
