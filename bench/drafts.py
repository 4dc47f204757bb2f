"""Where speculative decoding wins, and where it loses: one stream, with and without a draft model.

    python -m bench.drafts                    about a minute; --rounds N, --tokens N, --layers N

The large model is the demo's atlas with more layers, which change nothing of what it says but take time as such layers
do: so atlas drafts for it without ever being wrong, and noise on its weights makes it wrong as often as one likes. The
small model is atlas itself. Every round asks for one answer in each way, every second one in the other order; the
figures are medians of the rounds, in tokens a second of the processor. On Linux the system's OpenBLAS is preloaded, as
it is for workers, with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_roster.core import Chat, Counters, Delta, DraftSource, Generation, Limits, Measured, ModelSource, Sampling
from mlx_roster.demo import directory
from mlx_roster.engine.loop import Engine
from mlx_roster.errors import RosterError
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.workers.blas import preloaded

ATLAS = directory() / "models" / "atlas"

#: Noise on the weights of what drafts, and tokens drafted at a time.
NOISES = (0.0, 0.6, 1.0)
AT_ONCE = (2, 3, 5)

#: Width of the large model's MLPs: of one layer's weights they are nearly all.
WIDTH = 4096

QUESTION = "Tell me everything about Japan, France, Italy and Peru."


class Told:
    """An engine's output: how many tokens there were, in how many steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.ended = False

    def step(self, deltas: list[Delta]) -> None:
        self.steps += 1
        self.tokens += len(deltas)
        self.ended = deltas[-1].usage is not None

    def rejected(self, sequence: int, error: RosterError) -> None:
        raise error

    def report(self, measured: Measured) -> None:
        pass

    def counted(self, counters: Counters) -> None:
        pass


class Asked:
    """An engine that answers one request at a time."""

    def __init__(self, model: Path, drafts: dict[str, Path]) -> None:
        sources = tuple(DraftSource(name, str(path)) for name, path in drafts.items())
        source = ModelSource(model.name, str(model), 2**33, Limits(prompt_cache_entries=0), drafts=sources)
        self._told = Told()
        self._engine = Engine(load(source, lambda done, total: None), source, self._told, Adapters())
        self._numbers = itertools.count(1)

    def __call__(self, generation: Generation) -> tuple[float, float]:
        """Tokens a second of the processor after the first ones, and tokens a step."""
        told = self._told
        told.steps = told.tokens = 0
        self._engine.submit(next(self._numbers), generation)
        while not told.tokens:
            self._engine.turn()
        start, first, told.ended = time.process_time(), told.tokens, False
        while not told.ended:
            self._engine.turn()
        return (told.tokens - first) / (time.process_time() - start), told.tokens / told.steps

    def close(self) -> None:
        self._engine.close()


def noisy(folder: Path, noise: float) -> Path:
    """Atlas with noise on its weights, in parts of what these spread by."""
    shutil.copytree(ATLAS, folder)
    mx.random.seed(0)
    weights = {
        name: value + noise * mx.sqrt(mx.var(value)) * mx.random.normal(value.shape) if value.ndim == 2 else value
        for name, value in _weights().items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def deepened(folder: Path, layers: int) -> Path:
    """Atlas with wider layers and more of them: the new numbers meet zeros before anything is made of them."""
    shutil.copytree(ATLAS, folder)
    config = json.loads((ATLAS / "config.json").read_text())
    own, width, hidden = config["num_hidden_layers"], config["intermediate_size"], config["hidden_size"]
    pristine, weights = _weights(), _weights()
    mx.random.seed(0)
    for layer in range(layers):
        path, like = f"model.layers.{layer}", f"model.layers.{layer % own}"
        for name in [name for name in pristine if name.startswith(f"{like}.")]:
            weights[name.replace(like, path, 1)] = pristine[name]
        if layer >= own:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                weights[f"{path}.{name}.weight"] = mx.zeros_like(weights[f"{path}.{name}.weight"])
        for name in ("gate_proj", "up_proj"):
            more = mx.random.normal((WIDTH - width, hidden)) * hidden**-0.5
            weights[f"{path}.mlp.{name}.weight"] = mx.concatenate([weights[f"{path}.mlp.{name}.weight"], more])
        down = weights[f"{path}.mlp.down_proj.weight"]
        weights[f"{path}.mlp.down_proj.weight"] = mx.concatenate([down, mx.zeros((hidden, WIDTH - width))], axis=1)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    config |= {"num_hidden_layers": layers, "intermediate_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _weights() -> dict[str, mx.array]:
    weights = mx.load(str(ATLAS / "model.safetensors"))
    assert isinstance(weights, dict)
    return weights


class Way(NamedTuple):
    """How to ask: `large` is which model, and `noise` on what drafts for it; `at_once` 0 is no drafting."""

    large: bool
    temperature: float
    noise: float
    at_once: int

    def request(self, tokens: int) -> Generation:
        chat = Chat([{"role": "user", "content": QUESTION}])
        sampling = Sampling(temperature=self.temperature, seed=1, ignore_eos=True)
        return Generation(chat, tokens, sampling, draft=f"{self.noise}", draft_tokens=self.at_once)

    def __str__(self) -> str:
        model, kind = "large" if self.large else "small", f"temperature {self.temperature:g}"
        return f"{model}, {kind}, noise {self.noise:g}, {self.at_once} at once" if self.at_once else f"{model}, {kind}"


def ways() -> list[Way]:
    """Those that are compared to one without drafts follow it."""
    some = []
    for large, temperature, noises in ((True, 0.0, NOISES), (True, 1.0, NOISES[:2]), (False, 0.0, NOISES[:2])):
        some.append(Way(large, temperature, noises[0], 0))
        some += [Way(large, temperature, *one) for one in itertools.product(noises, AT_ONCE)]
    return some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    rates: defaultdict[Way, list[float]] = defaultdict(list)
    a_step: dict[Way, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drafts = {f"{noise}": noisy(folder / f"noise-{noise}", noise) for noise in NOISES}
        large, small = (
            stack.enter_context(closing(Asked(model, drafts)))
            for model in (deepened(folder / "large", options.layers), ATLAS)
        )
        for number in range(options.rounds):
            for way in ways() if number % 2 == 0 else reversed(ways()):
                rate, a_step[way] = (large if way.large else small)(way.request(options.tokens))
                rates[way].append(rate)
    plain = 0.0
    for way in ways():
        rate = statistics.median(rates[way])
        plain = plain if way.at_once else rate
        right = f"{(a_step[way] - 1) / way.at_once:4.0%} right" if way.at_once else ""
        print(f"{way!s:46} {rate:7.1f} tokens/s  x{rate / plain:4.2f}  {right}")


if __name__ == "__main__":
    environment = preloaded({"OPENBLAS_NUM_THREADS": "1", **os.environ})
    if environment != os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "bench.drafts", *sys.argv[1:]], environment)
    main()
