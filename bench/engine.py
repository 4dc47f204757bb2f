"""How much of a bare BatchGenerator's throughput the engine keeps: plain, with one adapter, with sixteen.

    python bench/engine.py [--rounds N] [--streams N] [--tokens N]

All variants run in one process, turn by turn, so that whatever else the machine does falls on all of them alike;
the figure of each is its median. On Linux compare with and without LD_PRELOAD=…/libopenblas.so.0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import Sampler, make_sampler

sys.path.insert(0, str(Path(__file__).parent.parent))

from mlx_roster.core import Generation
from mlx_roster.loaders.models import load
from mlx_roster.tensors import Loaded
from tests.engine import tiny

#: About four million parameters.
SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    # No logit stands for it: every stream has its full length.
    "eos_token_id": 5000,
}
KEYS = ["self_attn.q_proj", "self_attn.v_proj"]


def bare(loaded: Loaded, prompts: list[list[int]], tokens: int, sampler: Sampler | None = None) -> float:
    """Tokens a second of mlx-lm alone, reading what it returns."""
    generator = BatchGenerator(loaded.model, stop_tokens=[(5000,)], completion_batch_size=len(prompts), sampler=sampler)
    start = time.perf_counter()
    generator.insert(prompts, [tokens] * len(prompts))
    count = 0
    while responses := generator.next_generated():
        count += len(responses)
    elapsed = time.perf_counter() - start
    generator.close()
    assert count == len(prompts) * tokens
    return count / elapsed


def served(engine: tiny.Driven, requests: list[Generation]) -> float:
    """Tokens a second from the first submit to the last delta."""
    start = time.perf_counter()
    sequences = [engine.ask(request) for request in requests]
    engine.until_ended(*sequences)
    elapsed = time.perf_counter() - start
    count = sum(usage.completion for usage in (engine.said.last(sequence).usage for sequence in sequences) if usage)
    return count / elapsed


def variants(folder: Path, streams: int, tokens: int) -> dict[str, Callable[[], float]]:
    """Each variant's name and what runs it once. `bare` and the engines have models of their own."""
    model = tiny.write_model(folder / "model", **SIZES)
    adapters = [
        tiny.write_adapter(folder / f"adapter{index}", model, seed=index, rank=8, keys=KEYS, layers=4)
        for index in range(streams)
    ]
    prompts = [[(7 * row + 13 * column) % 2000 for column in range(24 + row % 12)] for row in range(streams)]
    alone = load(tiny.source(model), lambda done, total: None)
    engine = tiny.driven(model, max_adapters=streams, max_concurrency=streams)
    plain = tiny.driven(model, max_concurrency=streams)

    def requests(over: list[Path | None]) -> list[Generation]:
        return [tiny.request(prompt, tokens, over=adapter) for prompt, adapter in zip(prompts, over, strict=True)]

    return {
        "bare BatchGenerator": lambda: bare(alone, prompts, tokens),
        "engine, plain": lambda: served(plain, requests([None] * streams)),
        "engine, plain, layers wrapped": lambda: served(engine, requests([None] * streams)),
        "engine, one adapter on all rows": lambda: served(engine, requests([adapters[0]] * streams)),
        f"engine, {streams} adapters": lambda: served(engine, requests([*adapters])),
        "bare, temperature": lambda: bare(alone, prompts, tokens, make_sampler(0.8)),
        "engine, temperature": lambda: served(
            plain, [tiny.request(prompt, tokens, temperature=0.8, seed=1) for prompt in prompts]
        ),
        "bare, temperature and top_p": lambda: bare(alone, prompts, tokens, make_sampler(0.8, top_p=0.9)),
        "engine, temperature and top_p": lambda: served(
            plain, [tiny.request(prompt, tokens, temperature=0.8, top_p=0.9, seed=1) for prompt in prompts]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    print("LD_PRELOAD:", os.environ.get("LD_PRELOAD", "none"))
    with tempfile.TemporaryDirectory() as folder:
        runs = variants(Path(folder), options.streams, options.tokens)
        for run in runs.values():
            run()
        figures: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                figures[name].append(run())
    base = statistics.median(figures["bare BatchGenerator"])
    print(f"{'':34} {'tokens/s':>9} {'of bare':>8} {'spread':>15}")
    for name, seen in figures.items():
        median = statistics.median(seen)
        print(f"{name:34} {median:9.0f} {median / base:8.2f} {min(seen):7.0f} to {max(seen):.0f}")


if __name__ == "__main__":
    main()
