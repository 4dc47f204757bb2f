"""The measurements. Each adds one sample per round to some series; in a round, every side has its turn."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.models import Models
from bench.servers import Blas, Lines, Server, bare, mlx_lm_server, roster_server, settle
from bench.traffic import STREAMS, TOKENS, Client, prompts

BURST = 256
BURST_TOKENS = 4
#: A connection that takes this long had to be tried again: the kernel waits a second before it does.
RETRIED = 0.5
#: How long a request of a burst may take in all, in seconds.
BURST_PATIENCE = 30.0

#: Requests whose times to first token make one sample. Without OpenBLAS each takes many seconds.
ALTERNATIONS = {"system": 6, "none": 2}
#: A stream that outlasts every load, and how long it runs before one begins, in seconds.
LONG_TOKENS = 16000
UNDISTURBED = {"system": 4.0, "none": 8.0}


@dataclass
class Bench:
    """One run. `samples` are series by name: rates in tokens/s, times in seconds; one value per round."""

    client: Client
    models: Models
    blas: Blas
    rounds: int
    waves: int
    say: Callable[[str], None]
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def in_turn(self, number: int, sides: Sequence[tuple[str, Callable[[], float]]]) -> None:
        """One sample of each series. Every second round goes backwards, so that nobody always comes first."""
        take_turns(
            self.samples,
            number,
            sides,
            lambda said: self.say(f"BLAS {self.blas}, round {number + 1}/{self.rounds}: {said}"),
        )


def take_turns(
    samples: dict[str, list[float]],
    number: int,
    sides: Sequence[tuple[str, Callable[[], float]]],
    say: Callable[[str], None],
) -> None:
    """See `Bench.in_turn`."""
    for name, measure in sides if number % 2 == 0 else reversed(sides):
        samples[name].append(measure())
        say(f"{name} {samples[name][-1]:.4g}")


def throughput(bench: Bench) -> None:
    """16 streams at a time, over one model, two models, one adapter and 16 adapters."""
    models, blas = bench.models, bench.blas
    with ExitStack() as stack:
        ours = stack.enter_context(roster_server(models, blas))
        peer = stack.enter_context(mlx_lm_server(models, blas))
        alone = stack.enter_context(bare("generate", models.small[0], blas))
        for server in (ours, peer):
            for mix in _mixes(models).values():
                bench.client.rate(server, [prompts(f"warm {mix}")], *mix)
            server.check_blas(blas)
        settle(ours.process.pid)
        for number in range(bench.rounds):
            bench.in_turn(number, _sides(bench, number, ours, peer, alone))


def _mixes(models: Models) -> dict[str, tuple[Sequence[Path], Sequence[Path]]]:
    """What the streams of each traffic take in turn: models, and adapters."""
    one = models.small[:1]
    return {
        "one model": (one, ()),
        "two models": (models.small, ()),
        "one adapter": (one, models.adapters[:1]),
        "16 adapters": (one, models.adapters),
    }


def _sides(
    bench: Bench, number: int, ours: Server, peer: Server, alone: Lines
) -> list[tuple[str, Callable[[], float]]]:
    def waves(traffic: str) -> list[list[list[dict[str, str]]]]:
        return [prompts(f"{traffic}, round {number}, wave {wave}") for wave in range(bench.waves)]

    def served(server: Server, traffic: str) -> Callable[[], float]:
        return lambda: bench.client.rate(server, waves(traffic), *_mixes(bench.models)[traffic])

    def unserved() -> float:
        seconds = sum(float(alone.ask([wave, TOKENS])) for wave in waves("one model"))
        return bench.waves * STREAMS * TOKENS / seconds

    return [
        ("ours, one model", served(ours, "one model")),
        ("bare, one model", unserved),
        ("peer, one model", served(peer, "one model")),
        ("ours, two models", served(ours, "two models")),
        ("peer, two models", served(peer, "two models")),
        ("ours, one adapter", served(ours, "one adapter")),
        ("ours, 16 adapters", served(ours, "16 adapters")),
        ("peer, 16 adapters", served(peer, "16 adapters")),
    ]


def burst(bench: Bench) -> None:
    """Many connections at the same moment, each with a small request."""
    models, blas = bench.models, bench.blas
    with ExitStack() as stack:
        sides = {
            "ours": stack.enter_context(roster_server(models, blas)),
            "peer": stack.enter_context(mlx_lm_server(models, blas)),
        }
        for server in sides.values():
            bench.client.first_token(server, prompts("warm", 1)[0], models.small[0])
        for number in range(bench.rounds):
            for name, server in sides.items() if number % 2 == 0 else reversed(sides.items()):
                _burst(bench, name, server, number)


def _burst(bench: Bench, name: str, server: Server, number: int) -> None:
    bodies = [
        server.body(messages, BURST_TOKENS, bench.models.small[0]) for messages in prompts(f"burst {number}", BURST)
    ]
    results = bench.client.wave(server, bodies, BURST_PATIENCE)
    lost = [result for result in results if result["error"] or result["tokens"] != BURST_TOKENS]
    connects = [result["connect"] for result in results if result["connect"] is not None]
    bench.samples[f"{name}, burst, lost"].append(len(lost))
    bench.samples[f"{name}, burst, seconds of retries"].append(sum(time for time in connects if time > RETRIED))
    bench.samples[f"{name}, burst, slowest connect"].append(max(connects, default=0.0))
    bench.say(f"BLAS {bench.blas}, round {number + 1}/{bench.rounds}: burst, {name}: {len(lost)} lost {lost[:1]}")
    settle(server.process.pid)


def alternation(bench: Bench) -> None:
    """Two large models, asked one after the other, and one of them asked all the time."""
    models, blas = bench.models, bench.blas
    one, two = models.big
    with ExitStack() as stack:
        ours = stack.enter_context(roster_server(models, blas, big=True))
        peer = stack.enter_context(mlx_lm_server(models, blas))
        for server in (ours, peer):
            for model in (one, two):
                bench.client.first_token(server, prompts("warm", 1)[0], model)
        settle(ours.process.pid)
        for number in range(bench.rounds):
            sides = [
                ("ours, one large model", _first_tokens(bench, ours, number, [one, one])),
                ("ours, two large models", _first_tokens(bench, ours, number, [one, two])),
                ("peer, one large model", _first_tokens(bench, peer, number, [one, one])),
                ("peer, two large models", _first_tokens(bench, peer, number, [one, two])),
            ]
            bench.in_turn(number, sides)


def _first_tokens(bench: Bench, server: Server, number: int, models: Sequence[Path]) -> Callable[[], float]:
    def measure() -> float:
        # The first request pays for what the measurement before has left behind.
        asked = prompts(f"alternation {number} {models[1].name}", 1 + ALTERNATIONS[bench.blas])
        times = [
            bench.client.first_token(server, messages, models[turn % 2], tokens=4)
            for turn, messages in enumerate(asked)
        ]
        return statistics.median(times[1:])

    return measure


def cold(bench: Bench) -> None:
    """A request for a large model that is not loaded, and the same by hand, each time in fresh processes."""
    model = bench.models.big[0]
    messages = prompts("cold", 1)[0]

    def served() -> float:
        with roster_server(bench.models, bench.blas, big=True) as server:
            return bench.client.first_token(server, messages, model)

    def by_hand() -> float:
        with bare("cold", model, bench.blas) as process:
            return float(process.ask(messages))

    for number in range(bench.rounds):
        bench.in_turn(number, [("ours, cold", served), ("bare, cold", by_hand)])


def disturbance(bench: Bench) -> None:
    """The longest pause of a running stream before and during the load of a large model, in windows of one length."""
    for number in range(bench.rounds):
        with roster_server(bench.models, bench.blas, big=True) as server:
            small, large = bench.models.small[0], bench.models.big[0]
            bench.client.first_token(server, prompts("warm", 1)[0], small)
            settle(server.process.pid)
            stream = server.body(prompts(f"long {number}", 1)[0], LONG_TOKENS, small)
            # One word: what is looked at is the load, not the prompt that comes after it.
            short = server.body(prompts("short", 1, 1)[0], 1, large)
            before = UNDISTURBED[bench.blas]
            stamps, sent, answered = bench.client.disturbed(server, stream, short, before)
            window = min(before, answered - sent)
            bench.samples["ours, longest pause without a load"].append(longest_pause(stamps, sent - window, sent))
            bench.samples["ours, longest pause during a load"].append(longest_pause(stamps, sent, answered))
            bench.samples["ours, length of the load"].append(answered - sent)
            bench.say(f"BLAS {bench.blas}, round {number + 1}/{bench.rounds}: pauses, load {answered - sent:.2f} s")


def longest_pause(stamps: Sequence[float], begin: float, end: float) -> float:
    """The longest time without a chunk that overlaps the window; one that lasts until its end counts up to there."""
    times = [*stamps, end] if stamps and stamps[-1] < end else stamps
    pauses = (after - before for before, after in pairwise(times) if after > begin and before < end)
    return max(pauses, default=end - begin)
