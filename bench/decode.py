"""What adapters cost a decode step, in one process and without HTTP: as the engine does it, and as it might.

    python -m bench.decode                          both bases, adapters of the queries and values
    python -m bench.decode --targets all --sizes 4M

A step is the model's, and the choice of the likeliest token, for a batch after a prompt of 16 tokens. `plain` is the
base itself; `engine` is the engine's own bank; the others are the ways in `bench.tricks`, over the same weights. All
have their turn in each round; a time is the median, and so is a ratio to the plain step of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.models import llama
from mlx_lm.models.cache import BatchKVCache

from bench import report, tricks
from bench.fleet import RANK, SIZES, SLOTS, TARGETS
from bench.servers import Broken, environment
from bench.serving import kinds
from bench.tricks import Composition, Tried
from mlx_roster.core import Sampling
from mlx_roster.engine.lora import Bank
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.tensors import AdapterWeights, LoraPair
from mlx_roster.workers.blas import limit_threads

BATCHES = (1, 4, 16, 64)
DISTINCT = (1, 2, 8, 16)
PROMPT = 16
WARM = 3
#: Steps of one sample, at each size of a batch.
STEPS = {1: 40, 4: 30, 16: 15, 64: 8}

Step = Callable[[mx.array, list[Any]], mx.array]


class Subject:
    """One base, three times over the same weights: as it is, with the engine's bank, and with what is tried."""

    def __init__(self, size: str, targets: str) -> None:
        arguments, vocabulary = SIZES[size]
        config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "vocab_size": vocabulary}
        self.layers = arguments["num_hidden_layers"]
        models = [llama.Model(llama.ModelArgs.from_dict({**config, **arguments})) for _ in range(3)]
        for model in models[1:]:
            model.update(models[0].parameters())
        self.bare, adapted, trying = models
        mx.eval(self.bare.parameters())
        # As a worker does it: small models have one thread.
        limit_threads(mx.get_active_memory())
        names = [
            name
            for name, _ in trying.named_modules()
            if name.startswith("model.layers") and name.endswith(TARGETS[targets])
        ]
        modules = dict(trying.named_modules())
        self.tried = {name: Tried(modules[name], SLOTS + 1, RANK) for name in names}
        trying.update_modules(tree_unflatten(list(self.tried.items())))
        self._trying = trying
        routing = Routing()
        self._routed = Routed(adapted, routing)
        self._fill(Bank(adapted, routing, SLOTS))

    def _fill(self, bank: Bank) -> None:
        for slot in range(1, SLOTS + 1):
            pairs = {name: LoraPair(layer.wide[slot], layer.b[slot]) for name, layer in self.tried.items()}
            bank.put(slot, AdapterWeights(str(slot), str(slot), pairs, {}, 0))

    def stepping(self, slots: Sequence[int]) -> dict[str, Callable[[int], float]]:
        """What times so many steps of a batch with these slots, in each way; in ms for each step."""
        composition = Composition(slots, RANK)
        rows = [Row(slot, Sampling(temperature=0.0)) for slot in slots]
        ways: dict[str, Callable[[int], float]] = {
            "plain": lambda count: self._timed(len(slots), count, self._plainly),
            "plain, wrapped": lambda count: self._timed(
                len(slots), count, self._routed, Rows([Row(0, row.sampling) for row in rows])
            ),
            "engine": lambda count: self._timed(len(slots), count, self._routed, Rows(rows)),
        }
        for name, trick in tricks.usable(composition).items():
            ways[name] = lambda count, trick=trick: self._try(trick, composition, count)  # type: ignore[misc]
        return ways

    def check(self, slots: Sequence[int]) -> None:
        """Raises Broken unless all ways to have adapters come to the same, which is not what the base says."""
        composition, rows = Composition(slots, RANK), Rows([Row(slot, Sampling(temperature=0.0)) for slot in slots])
        tokens = mx.arange(len(slots), dtype=mx.int32)[:, None]
        cache: list[Any] = [BatchKVCache([0] * len(slots)) for _ in range(self.layers)]
        expected = self._routed(tokens, [*cache, rows])
        if mx.allclose(expected, self.bare(tokens), atol=1e-3):
            raise Broken("the adapters change nothing")
        for name, trick in tricks.usable(composition).items():
            for layer in self.tried.values():
                layer.compose(trick, composition)
            if not mx.allclose(expected, self._trying(tokens), rtol=1e-3, atol=1e-4):
                raise Broken(f"{name} comes to something else than the engine does")

    def _plainly(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self.bare(tokens, cache=cache)
        return logits

    def _try(self, trick: tricks.Trick, composition: Composition, count: int) -> float:
        for layer in self.tried.values():
            # Not for the prompt: the tricks are for steps.
            layer.compose(tricks.plain, composition)
        batch = len(composition.rows)

        def step(tokens: mx.array, cache: list[Any]) -> mx.array:
            if tokens.shape[1] == 1 and layer.trick is not trick:
                for one in self.tried.values():
                    one.compose(trick, composition)
            logits: mx.array = self._trying(tokens, cache=cache)
            return logits

        return self._timed(batch, count, step)

    def _timed(self, batch: int, count: int, step: Step, rows: Rows | None = None) -> float:
        """As mlx-lm decodes: the next step is on its way before the last one's tokens are looked at."""
        cache: list[Any] = [BatchKVCache([0] * batch) for _ in range(self.layers)]
        if rows is not None:
            cache.append(rows)
        mx.eval(step(mx.zeros((batch, PROMPT), dtype=mx.int32), cache))
        tokens = mx.zeros((batch, 1), dtype=mx.int32)
        begun = 0.0
        for number in range(WARM + count):
            if number == WARM:
                mx.eval(tokens)
                begun = time.perf_counter()
            following = mx.argmax(step(tokens, cache)[:, -1], axis=-1)[:, None]
            mx.async_eval(following)  # type: ignore[no-untyped-call]
            mx.eval(tokens)
            tokens = following
        mx.eval(tokens)
        return (time.perf_counter() - begun) / count * 1e3

    def parts(self, slots: Sequence[int]) -> dict[str, Callable[[int], float]]:
        """What times the parts of what a mixed step adds, each by itself and for all layers; in ms for each step."""
        index = mx.array(list(slots), dtype=mx.uint32)
        batch = len(slots)
        layers = list(self.tried.values())
        xs = {layer.a.shape[-1]: mx.random.normal((batch, 1, layer.a.shape[-1])) for layer in layers}
        ys = {layer.b.shape[-1]: mx.random.normal((batch, 1, layer.b.shape[-1])) for layer in layers}
        z, one, ones = mx.random.normal((batch, 1, RANK)), mx.ones((1, 1, 1)), mx.ones((SLOTS + 1, 1, 1))
        first = index[:1]
        mx.eval(index, first, *xs.values(), *ys.values(), z, one, ones)

        def product_a(layer: Tried) -> mx.array:
            return mx.gather_mm(xs[layer.a.shape[-1]], layer.a.swapaxes(-1, -2), rhs_indices=index)

        def product_b(layer: Tried) -> mx.array:
            return mx.gather_mm(z, layer.b, rhs_indices=index)

        def add(layer: Tried) -> mx.array:
            # Both operands are read, as they are in a step.
            y = ys[layer.b.shape[-1]]
            return y + y

        def chain(layer: Tried) -> mx.array:
            between = mx.gather_mm(xs[layer.a.shape[-1]], layer.a.swapaxes(-1, -2), rhs_indices=index)
            return ys[layer.b.shape[-1]] + mx.gather_mm(between, layer.b, rhs_indices=index)

        def dispatch(layer: Tried) -> mx.array:
            # The same operations on single numbers: all but the work itself.
            between = mx.gather_mm(one, ones.swapaxes(-1, -2), rhs_indices=first)
            return one + mx.gather_mm(between, ones, rhs_indices=first)

        parts = {"A product": product_a, "B product": product_b, "add": add, "all three": chain, "dispatch": dispatch}
        return {name: (lambda count, part=part: _timed_parts(layers, part, count)) for name, part in parts.items()}  # type: ignore[misc]

    def traffic(self, slots: Sequence[int]) -> int:
        """Bytes of the adapters that a step with these slots must read."""
        return len(set(slots)) * sum(4 * (layer.a[0].size + layer.b[0].size) for layer in self.tried.values())


def _timed_parts(layers: Sequence[Tried], part: Callable[[Tried], mx.array], count: int) -> float:
    mx.eval([part(layer) for layer in layers])
    begun = time.perf_counter()
    for _ in range(count):
        mx.eval([part(layer) for layer in layers])
    return (time.perf_counter() - begun) / count * 1e3


def sampled(ways: dict[str, Callable[[int], float]], rounds: int, count: int) -> dict[str, list[float]]:
    """Each way has its turn in each round; every second round goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            found[name].append(ways[name](count))
    return found


def profile(size: str, targets: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print two tables; returns their samples, in ms."""
    subject = Subject(size, targets)
    found: list[dict[str, Any]] = []
    for batch in arguments.batches:
        for distinct in [count for count in arguments.distinct if count <= batch]:
            slots = [1 + row % distinct for row in range(batch)]
            subject.check(slots)
            count = STEPS.get(batch, min(STEPS.values()))
            steps = sampled(subject.stepping(slots), arguments.rounds, count)
            parts = sampled(subject.parts(slots), arguments.rounds, count)
            read = subject.traffic(slots)
            found.append({"batch": batch, "distinct": distinct, "steps": steps, "parts": parts, "bytes": read})
            print(f"{size} {targets}, batch {batch}, {distinct} adapters", file=sys.stderr, flush=True)
    _show(f"{size} {targets}", found)
    return found


def _show(name: str, found: Sequence[dict[str, Any]]) -> None:
    ways = list(dict.fromkeys(way for one in found for way in one["steps"]))
    report.table(
        f"Step, {name}: ms, and the plain step's over it",
        ("rows", "adapters", *ways),
        [(str(one["batch"]), str(one["distinct"]), *(_cell(one["steps"], way) for way in ways)) for one in found],
    )
    parts = list(found[0]["parts"])
    report.table(
        f"What a mixed step adds, {name}: ms for all layers, each part by itself",
        ("rows", "adapters", *parts, "MB of adapters read", "GB/s of the two products"),
        [
            (
                *(str(one["batch"]), str(one["distinct"])),
                *(f"{statistics.median(one['parts'][part]):.3f}" for part in parts),
                f"{one['bytes'] / 1e6:.2f}",
                f"{_speed(one['bytes'], one['parts']):.1f}",
            )
            for one in found
        ],
    )


def _speed(read: int, parts: dict[str, list[float]]) -> float:
    """GB/s, from bytes and ms."""
    return read / 1e6 / sum(statistics.median(parts[name]) for name in ("A product", "B product"))


def _cell(steps: dict[str, list[float]], way: str) -> str:
    if way not in steps:
        return ""
    ratio = statistics.median(plain / other for plain, other in zip(steps["plain"], steps[way], strict=True))
    return f"{statistics.median(steps[way]):.2f} ({ratio:.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blas", choices=["system", "none"], default="system", help="default: system")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: both bases")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=["qv"], help="default: qv")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="default: 1 4 16 64")
    parser.add_argument("--distinct", nargs="+", type=int, default=DISTINCT, help="default: 1 2 8 16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not arguments.inside:
        # In the environment of a worker: what it preloads must be there before it starts.
        blas = kinds(arguments.blas)[0]
        command = [sys.executable, "-m", "bench.decode", *sys.argv[1:], "--inside"]
        sys.exit(subprocess.run(command, env=environment(blas, preload=True), check=False).returncode)
    print("LD_PRELOAD:", os.environ.get("LD_PRELOAD", "none"))
    found = {
        f"{size} {targets}": profile(size, targets, arguments)
        for targets in arguments.targets
        for size in arguments.sizes
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
