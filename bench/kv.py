"""What quantized KV caches cost a step and spare in memory, in one process and without HTTP.

    python -m bench.kv                          half a minute
    python -m bench.kv --rows 1 4 --bits 8 6 4 3 2

A decode step of one token for each row, and the taking in of the next 64 tokens of a prompt, after so much context.
The model is a random llama of 35 million parameters with two queries for each key; the context is random numbers, since
what they are makes no difference to the time. All have their turn in each round; a time is the median, of the
processor: other work on the machine counts for nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama

from bench import report
from bench.servers import environment
from bench.serving import kinds
from mlx_roster.core import ModelSource
from mlx_roster.engine.caches import cache_size, make_caches, quantization_for
from mlx_roster.workers.blas import limit_threads

MODEL = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
HEADS, HEAD_DIM = 4, 64
PROMPT = 64
TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Subject:
    """The model, with caches of so many bits; None leaves them as they are."""

    def __init__(self, model: Any, bits: int | None) -> None:
        self._model = model
        self._quantization = quantization_for(model, ModelSource("bench", "", memory=0, kv_bits=bits))
        self.per_token = cache_size(model, self._quantization).per_token

    def caches(self, context: int, rows: int) -> list[Any]:
        """A batch's, all rows with a context of random numbers."""
        alone = [make_caches(self._model, self._quantization) for _ in range(rows)]
        for one in alone:
            for cache in one:
                shape = (1, HEADS, context, HEAD_DIM)
                numbers = mx.random.normal(shape).astype(self._model.lm_head.weight.dtype)
                cache.update_and_fetch(numbers, numbers)
                mx.eval(cache.state)
        batch = [same[0].merge(list(same)) for same in zip(*alone, strict=True)]
        mx.eval([cache.state for cache in batch])
        return batch

    def step(self, caches: list[Any], rows: int, tokens: int) -> float:
        """Milliseconds of the processor."""
        inputs = mx.zeros((rows, tokens), dtype=mx.int32)
        begun = time.process_time()
        mx.eval(mx.argmax(self._model(inputs, cache=caches)[:, -1], axis=-1))
        return (time.process_time() - begun) * 1e3


def measured(subjects: dict[str, Subject], context: int, rows: int, rounds: int) -> list[tuple[str, ...]]:
    """A line of the table for each."""
    caches = {name: subject.caches(context, rows) for name, subject in subjects.items()}
    decoding: dict[str, list[float]] = {name: [] for name in subjects}
    reading: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in list(subjects.items())[:: 1 if number % 2 else -1]:
            for samples, tokens in ((decoding, 1), (reading, PROMPT)):
                took = subject.step(caches[name], rows, tokens)
                if number:  # the first has room to make
                    samples[name].append(took)
    first, *_ = subjects
    lines = []
    for name, subject in subjects.items():
        held = context * rows * subject.per_token
        share = subject.per_token / subjects[first].per_token
        lines.append(
            (
                *(f"{context:,}", str(rows), name, f"{held / 2**20:.0f} ({share:.2f})"),
                *(_cell(samples[name], samples[first]) for samples in (decoding, reading)),
            )
        )
    return lines


def _cell(samples: Sequence[float], plain: Sequence[float]) -> str:
    ratio = statistics.median(one / other for one, other in zip(samples, plain, strict=True))
    return f"{statistics.median(samples):.1f} ({ratio:.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4], help="default: 8 4")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 8192], help="tokens (default: 1024 8192)")
    parser.add_argument("--rows", nargs="+", type=int, default=[1], help="default: 1")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--dtype", choices=list(TYPES), default="float32", help="of the weights (default: float32)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not arguments.inside:
        # In the environment of a worker: what it preloads must be there before it starts.
        command = [sys.executable, "-m", "bench.kv", *sys.argv[1:], "--inside"]
        sys.exit(subprocess.run(command, env=environment(kinds("system")[0], preload=True), check=False).returncode)
    print("LD_PRELOAD:", os.environ.get("LD_PRELOAD", "none"))
    model = llama.Model(llama.ModelArgs.from_dict(MODEL))
    model.set_dtype(TYPES[arguments.dtype])
    mx.eval(model.parameters())
    limit_threads(0)  # one, so that its time is the time
    subjects = {arguments.dtype: Subject(model, None)}
    subjects |= {f"{bits} bits": Subject(model, bits) for bits in arguments.bits}
    lines = [
        line
        for context in arguments.contexts
        for rows in arguments.rows
        for line in measured(subjects, context, rows, arguments.rounds)
    ]
    heads = ("context", "rows", "caches", "MiB", "decode step, ms", f"{PROMPT} tokens of a prompt, ms")
    report.table("Quantized KV caches, and the ratio to plain ones", heads, lines)


if __name__ == "__main__":
    main()
