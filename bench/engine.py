"""How much of a bare BatchGenerator's throughput the engine keeps: plain, with one adapter, with sixteen.

    python bench/engine.py [--rounds N] [--streams N] [--tokens N]

All variants run in one process, turn by turn, so that whatever else the machine does falls on all of them alike;
the figure of each is its median. On Linux compare with and without LD_PRELOAD=…/libopenblas.so.0.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import Sampler, make_sampler

sys.path.insert(0, str(Path(__file__).parent.parent))

from mlx_roster.core import Counters, Delta, Generation, Measured, ModelSource
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import RosterError
from mlx_roster.loaders.adapters import Adapters
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


class Tally:
    """An engine's output that costs next to nothing."""

    def __init__(self) -> None:
        self.ended = 0
        self.tokens = 0

    def step(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.usage is not None:
                self.ended += 1
                self.tokens += delta.usage.completion

    def rejected(self, sequence: int, error: RosterError) -> None:
        raise error

    def report(self, measured: Measured) -> None:
        pass

    def counted(self, counters: Counters) -> None:
        pass


class Served:
    """An engine of its own, turned until all of a round has been answered."""

    def __init__(self, source: ModelSource) -> None:
        self._tally = Tally()
        self._engine = Engine(load(source, lambda done, total: None), source, self._tally, Adapters())
        self._numbers = itertools.count()

    def __call__(self, requests: list[Generation]) -> float:
        """Tokens a second from the first submit to the last delta."""
        self._tally.ended = self._tally.tokens = 0
        start = time.perf_counter()
        for request in requests:
            self._engine.submit(next(self._numbers), request)
        while self._tally.ended < len(requests):
            self._engine.turn()
        return self._tally.tokens / (time.perf_counter() - start)

    def close(self) -> None:
        self._engine.close()


def variants(stack: ExitStack, folder: Path, streams: int, tokens: int) -> dict[str, Callable[[], float]]:
    """Each variant's name and what runs it once. `bare` and the engines have models of their own."""
    model = tiny.write_model(folder / "model", **SIZES)
    adapters = [
        tiny.write_adapter(folder / f"adapter{index}", model, seed=index, rank=8, keys=KEYS, layers=4)
        for index in range(streams)
    ]
    prompts = [[(7 * row + 13 * column) % 2000 for column in range(24 + row % 12)] for row in range(streams)]
    alone = load(tiny.source(model), lambda done, total: None)
    # The same prompts come in every round: a prefix cache would spare the engine what the bare generator computes.
    limits = {"max_concurrency": streams, "prompt_cache_entries": 0}
    plain = stack.enter_context(closing(Served(tiny.source(model, **limits))))
    wrapped = stack.enter_context(closing(Served(tiny.source(model, max_adapters=streams, **limits))))

    def requests(over: list[Path | None]) -> list[Generation]:
        return [tiny.request(prompt, tokens, over=adapter) for prompt, adapter in zip(prompts, over, strict=True)]

    return {
        "bare BatchGenerator": lambda: bare(alone, prompts, tokens),
        "engine, plain": lambda: plain(requests([None] * streams)),
        "engine, plain, layers wrapped": lambda: wrapped(requests([None] * streams)),
        "engine, one adapter on all rows": lambda: wrapped(requests([adapters[0]] * streams)),
        f"engine, {streams} adapters": lambda: wrapped(requests([*adapters])),
        "bare, temperature": lambda: bare(alone, prompts, tokens, make_sampler(0.8)),
        "engine, temperature": lambda: plain(
            [tiny.request(prompt, tokens, temperature=0.8, seed=1) for prompt in prompts]
        ),
        "bare, temperature and top_p": lambda: bare(alone, prompts, tokens, make_sampler(0.8, top_p=0.9)),
        "engine, temperature and top_p": lambda: plain(
            [tiny.request(prompt, tokens, temperature=0.8, top_p=0.9, seed=1) for prompt in prompts]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    print("LD_PRELOAD:", os.environ.get("LD_PRELOAD", "none"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = variants(stack, Path(folder), options.streams, options.tokens)
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
