"""The measurements of `bench.adapters`. In a round every side has its turn on prompts of one length."""

from __future__ import annotations

import random
import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.fleet import RANK, SLOTS, Fleet, Order, rank_of
from bench.measure import longest_pause, take_turns
from bench.servers import Blas, Lines, Ours, serving, settle
from bench.traffic import Client, duration

#: Streams at once, and how many waves of them make one sample.
WAVES = {1: 4, 16: 2, 64: 1}
MOLA_ADAPTERS = 8
PROMPT = 32

REGISTERED = 1000
SKEW = 1.1
AT_ONCE = 16

#: Bytes of an adapter that is loaded while a stream runs, and how many are in each round.
COLD_BYTES = 10**6
COLD_PER_ROUND = 5
#: Tokens of the prompts that join the stream: few, since what is looked at is the adapter, and not enough for a prefix
#: cache to have any use of them.
JOINING_PROMPT, JOINING_TOKENS = 8, 4
#: Seconds before and between them, and tokens of a stream that outlasts them.
PAUSE = 0.2
LONG_TOKENS = 16000

RESIDENT = (1, 4, 8, SLOTS)

#: Below are all ids but those that a turn begins and ends with.
VOCABULARY = range(8, 2048)


class Shown(NamedTuple):
    """A table that is no series of samples."""

    title: str
    head: Sequence[str]
    lines: list[Sequence[str]]


@dataclass
class Run:
    """One run. `samples` are series by name: rates in tokens/s, times in seconds; one value per round or request."""

    client: Client
    fleet: Fleet
    blas: Blas
    rounds: int
    tokens: int
    registered: int
    streams: Sequence[int]
    say: Callable[[str], None]
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tables: list[Shown] = field(default_factory=list)

    def in_turn(self, number: int, sides: Sequence[tuple[str, Callable[[], float]]]) -> None:
        """One sample of each series."""
        take_turns(self.samples, number, sides, lambda said: self.say(f"round {number + 1}/{self.rounds}: {said}"))

    @contextmanager
    def serving(self, order: Order, slots: int, **settings: Any) -> Iterator[Ours]:
        """A server with the order's base loaded, and its adapters listed. `settings` are of its entry."""
        base = self.fleet.base(order.size)
        entry = {
            "source": str(base),
            "max_concurrency": max(WAVES),
            "max_adapters": slots,
            **settings,
            "adapters": {path.name: str(path) for path in self.fleet.adapters(order)},
        }
        roster = {"memory": {"spare_worker": False}, "models": {base.name: entry}}
        with serving(self.fleet.folder / "roster.yaml", roster, self.blas) as server:
            self.client.served(server, [server.tokens(_prompts("first", 1)[0], 2, base)])
            server.check_blas(self.blas)
            settle(server.process.pid)
            yield server


def ordered(name: str, size: str, targets: str, rounds: int, registered: int) -> Order:
    """What a measurement needs."""
    if name == "cold":
        return Order(size, targets, rank_of(size, targets, COLD_BYTES), 1 + 2 * COLD_PER_ROUND * rounds)
    counts = {"mola": MOLA_ADAPTERS, "zipf": registered, "memory": SLOTS}
    return Order(size, targets, RANK, counts[name])


def _prompts(label: str, count: int, length: int = PROMPT) -> list[list[int]]:
    """Token ids, the same for the same label. No two prompts begin alike: a prefix cache must have nothing to gain."""
    draw = random.Random(label)
    return [draw.choices(VOCABULARY, k=length) for _ in range(count)]


def mola(run: Run, size: str, targets: str) -> None:
    """MOLA's table: the base, one adapter, and eight in turn, with 1, 16 and 64 streams."""
    order = ordered("mola", size, targets, run.rounds, run.registered)
    adapters = run.fleet.adapters(order)
    mixes: dict[str, Sequence[Path]] = {"plain": (), "same": adapters[:1], "mixed": adapters}
    with run.serving(order, MOLA_ADAPTERS) as server:
        for name, mix in mixes.items():
            _wave(run, server, order, mix, AT_ONCE, f"warm {name}")
        for number in range(run.rounds):
            for streams in run.streams:
                _mola_round(run, server, order, mixes, streams, number)


def _mola_round(
    run: Run, server: Ours, order: Order, mixes: dict[str, Sequence[Path]], streams: int, number: int
) -> None:
    """One sample of each side, whose waves alternate: what else the machine does falls on all of them alike."""
    seconds = dict.fromkeys(mixes, 0.0)
    for wave in range(WAVES[streams]):
        first = (number * WAVES[streams] + wave) * streams
        for name in mixes if (number + wave) % 2 == 0 else reversed(mixes):
            # A side's name is part of the label, so that no adapter sees a prompt twice.
            label = f"{name}, {streams} streams, round {number}, wave {wave}"
            seconds[name] += _wave(run, server, order, mixes[name], streams, label, first)
    prefix = f"{order.size} {order.targets}, {streams} streams"
    for name, spent in seconds.items():
        run.samples[f"{prefix}, {name}"].append(WAVES[streams] * streams * run.tokens / spent)
    rates = ", ".join(f"{name} {run.samples[f'{prefix}, {name}'][-1]:.4g}" for name in mixes)
    run.say(f"round {number + 1}/{run.rounds}: {prefix}: {rates}")


def _wave(
    run: Run, server: Ours, order: Order, adapters: Sequence[Path], streams: int, label: str, first: int = 0
) -> float:
    """Seconds that so many streams take; they have the adapters in turn, from the `first` on."""
    base = run.fleet.base(order.size)
    bodies = [
        server.tokens(prompt, run.tokens, base, adapters[(first + number) % len(adapters)] if adapters else None)
        for number, prompt in enumerate(_prompts(label, streams))
    ]
    return duration(run.client.served(server, bodies))


def zipf(run: Run, size: str, targets: str) -> None:
    """Very many adapters listed, few slots, and traffic as it is: a few of them are asked for most of the time."""
    order = ordered("zipf", size, targets, run.rounds, run.registered)
    adapters = run.fleet.adapters(order)
    # No prefix cache: the worker's bytes are to be those of its adapters.
    alike: dict[str, Any] = {"prompt_cache": {"entries": 0}}
    with run.serving(replace(order, count=0), SLOTS, **alike) as server:
        held = [("server process, no adapter listed", *_process(psutil.Process(server.process.pid)), "")]
    with run.serving(order, SLOTS, **alike) as server:
        held.append((f"server process, {len(adapters)} listed", *_process(psutil.Process(server.process.pid)), ""))
        # What a batch takes by itself is no adapter's.
        _pooled(run, server, order, [None] * AT_ONCE, "warm base")
        settle(server.process.pid)
        held.append(("worker, before any adapter", *_process(server.worker), _reported(run, server, order)))
        _pooled(run, server, order, [adapters[0]] * AT_ONCE, "warm")
        asked: list[Path] = []
        for number in range(run.rounds):
            asked += _zipf_round(run, server, order, adapters, number)
        settle(server.process.pid)
        held.append(("server process, after", *_process(psutil.Process(server.process.pid)), ""))
        held.append((f"worker, after, {SLOTS} slots filled", *_process(server.worker), _reported(run, server, order)))
    run.tables.append(
        Shown(
            f"Memory, {size} {targets}: MiB", ("process", "resident", "proportional", "reported by the worker"), [*held]
        )
    )
    run.tables.append(_hits(f"Traffic, {size} {targets}", asked))


def _zipf_round(run: Run, server: Ours, order: Order, adapters: Sequence[Path], number: int) -> list[Path]:
    """Returns the adapters asked for, in their order."""
    draw = random.Random(number)
    weights = [1 / (place + 1) ** SKEW for place in range(len(adapters))]
    asked = draw.choices(adapters, weights, k=6 * AT_ONCE)
    prefix = f"{order.size} {order.targets}, {AT_ONCE} streams"
    run.in_turn(
        number,
        [
            (f"{prefix}, Zipf", lambda: _pooled(run, server, order, asked, f"Zipf {number}")),
            (
                f"{prefix}, one adapter",
                lambda: _pooled(run, server, order, [adapters[0]] * len(asked), f"one {number}"),
            ),
        ],
    )
    return asked


def _pooled(run: Run, server: Ours, order: Order, asked: Sequence[Path | None], label: str) -> float:
    base = run.fleet.base(order.size)
    prompts = _prompts(label, len(asked))
    bodies = [server.tokens(prompt, run.tokens, base, adapter) for prompt, adapter in zip(prompts, asked, strict=True)]
    return run.client.pooled(server, bodies, AT_ONCE)


def _process(process: psutil.Process) -> tuple[str, str]:
    """Resident and proportional MiB; the latter on Linux only."""
    held = process.memory_full_info()
    return _mib(held.rss), _mib(held.pss) if hasattr(held, "pss") else ""


def _reported(run: Run, server: Ours, order: Order) -> str:
    """MiB that the worker said it holds when it last came to rest."""
    measured = server.ask(f"/v1/models/{run.fleet.base(order.size).name}")["roster"]["bytes"]["measured"]
    return _mib(measured)


def _mib(amount: float) -> str:
    return f"{amount / 2**20:.2f}"


def _hits(title: str, asked: Sequence[Path]) -> Shown:
    """What an LRU of so many slots makes of the traffic, were it one request after the other."""
    slots: OrderedDict[Path, None] = OrderedDict()
    missed = 0
    for path in asked:
        missed += path not in slots
        slots[path] = None
        slots.move_to_end(path)
        if len(slots) > SLOTS:
            slots.popitem(last=False)
    line = (str(len(asked)), str(len(set(asked))), f"{missed} ({missed / len(asked):.0%})")
    return Shown(title, ("requests", "adapters asked for", f"not in {SLOTS} least recently used slots"), [line])


def cold(run: Run, size: str, targets: str) -> None:
    """Adapters never used before, and a warm one, in turn: each alone, and each beside a running stream."""
    order = ordered("cold", size, targets, run.rounds, run.registered)
    warm, *fresh = run.fleet.adapters(order)
    base = run.fleet.base(size)
    unused = iter(fresh)
    with run.serving(order, SLOTS) as server:
        for number in range(3):
            # The bank's first adapter also wraps the layers; it is warm only when the batch has been there, too.
            run.client.served(server, [server.tokens(_prompts(f"warm {number}", 1)[0], 16, base, warm)])
        for number in range(run.rounds):
            adapters = [next(unused) if turn % 2 else warm for turn in range(2 * COLD_PER_ROUND)]
            _alone(run, server, order, adapters, f"alone {number}")
            adapters = [next(unused) if turn % 2 else warm for turn in range(2 * COLD_PER_ROUND)]
            _beside(run, server, order, adapters, number)


def _joining(run: Run, server: Ours, order: Order, adapters: Sequence[Path], label: str) -> list[dict[str, Any]]:
    """Small requests, one for each of the adapters."""
    base = run.fleet.base(order.size)
    prompts = _prompts(label, len(adapters), JOINING_PROMPT)
    return [
        server.tokens(prompt, JOINING_TOKENS, base, adapter) for prompt, adapter in zip(prompts, adapters, strict=True)
    ]


def _alone(run: Run, server: Ours, order: Order, adapters: Sequence[Path], label: str) -> None:
    """`adapters` are a warm one and a cold one, in turn."""
    bodies = _joining(run, server, order, adapters, label)
    firsts = [run.client.served(server, [body])[0]["first"] for body in bodies]
    _add_pairs(run, f"{order.size} {order.targets}, alone", firsts)


def _add_pairs(run: Run, prefix: str, firsts: Sequence[float]) -> None:
    """Times to first token of warm and cold ones, in turn, in seconds."""
    for warm, cold in zip(firsts[::2], firsts[1::2], strict=True):
        run.samples[f"{prefix}: first token, warm"].append(warm)
        run.samples[f"{prefix}: first token, cold"].append(cold)
        run.samples[f"{prefix}: cold less warm"].append(cold - warm)


def _beside(run: Run, server: Ours, order: Order, adapters: Sequence[Path], number: int) -> None:
    """The same beside a stream on the base: times to first token, and the longest pauses of that stream."""
    prefix = f"{order.size} {order.targets}, beside a stream"
    stream = server.tokens(_prompts(f"long {number}", 1)[0], LONG_TOKENS, run.fleet.base(order.size))
    bodies = _joining(run, server, order, adapters, f"beside {number}")
    stamps, joined = run.client.joined(server, stream, bodies, 2 * PAUSE, PAUSE)
    _add_pairs(run, prefix, [result["first"] for result in joined])
    windows = [(result["begun"], result["ended"]) for result in joined]
    step = statistics.median(
        after - before
        for before, after in pairwise(stamps)
        if not any(after > begin and before < end for begin, end in windows)
    )
    run.samples[f"{prefix}: step"].append(step)
    pauses = [longest_pause(stamps, begin, end) for begin, end in windows]
    for warm, cold in zip(pauses[::2], pauses[1::2], strict=True):
        run.samples[f"{prefix}: longest pause, warm"].append(warm)
        run.samples[f"{prefix}: longest pause, cold"].append(cold)
        run.samples[f"{prefix}: longest pause, warm, in steps"].append(warm / step)
        run.samples[f"{prefix}: longest pause, cold, in steps"].append(cold / step)
        run.samples[f"{prefix}: longest pause, cold less warm, in steps"].append((cold - warm) / step)
    # As long as the others, each just before one of them: what the machine does by itself.
    for begin, end in windows:
        quiet = longest_pause(stamps, 2 * begin - end, begin)
        run.samples[f"{prefix}: longest pause, undisturbed, in steps"].append(quiet / step)
    run.say(f"round {number + 1}/{run.rounds}: {prefix}, step {step * 1e3:.2f} ms")


def memory(run: Run, size: str, targets: str) -> None:
    """What the engine holds with so many adapters, against the sum of what they should take."""
    order = ordered("memory", size, targets, run.rounds, run.registered)
    adapters = [str(path) for path in run.fleet.adapters(order)]
    each = (Path(adapters[0]) / "adapters.safetensors").stat().st_size
    lines = []
    with Lines("bench.resident", str(run.fleet.base(size)), blas=run.blas) as process:
        base = process.read()["active"]
        for before, count in pairwise((0, *RESIDENT)):
            found = process.ask(adapters[before:count])
            deviation = found["active"] / (base + found["bank"]) - 1
            run.samples[f"{size} {targets}, {count} adapters: measured over expected"].append(1 + deviation)
            figures = (base, count * each, found["bank"] - count * each, base + found["bank"], found["active"])
            lines.append((str(count), *map(_mib, figures), f"{deviation:+.2%}"))
    head = ("adapters", "base", "adapters' files", "padding and empty slots", "expected", "measured", "deviation")
    run.tables.append(Shown(f"Memory of the engine, {size} {targets}: MiB", head, [*lines]))
