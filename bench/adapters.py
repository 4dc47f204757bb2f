"""Many LoRA adapters over one base, through the whole server, against one adapter and against none.

    python -m bench.adapters                      everything, for adapters of the queries and values
    python -m bench.adapters --targets all        the same, for adapters of all linear layers
    python -m bench.adapters --only cold          or mola, zipf, memory
    python -m bench.adapters --quick              a look: one round, the small base, few tokens

What a decode step does with adapters, and what it could do instead: `python -m bench.decode`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import mixing, report
from bench.fleet import SIZES, TARGETS, Fleet, Order
from bench.mixing import AT_ONCE, RESIDENT, WAVES, Run, Shown
from bench.report import Row
from bench.servers import Blas, Broken, Lines
from bench.serving import kinds, say
from bench.traffic import TOKENS, Client

CACHE = Path(__file__).parent / ".cache" / "adapters"

MEASUREMENTS: dict[str, Callable[[Run, str, str], None]] = {
    "mola": mixing.mola,
    "zipf": mixing.zipf,
    "cold": mixing.cold,
    "memory": mixing.memory,
}

#: What MOLA says that eight adapters cost over one, by the number of streams.
MOLA = {1: 0.0, 16: 0.22, 64: 0.24}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blas", choices=["system", "none", "both"], default="system", help="default: system")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), help="some measurements only")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=["qv"], help="default: qv")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: both bases")
    parser.add_argument("--streams", nargs="+", type=int, choices=list(WAVES), default=list(WAVES), help="of mola")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each answer (default: %(default)s)")
    parser.add_argument("--registered", type=int, default=mixing.REGISTERED, help="adapters listed for zipf")
    parser.add_argument("--quick", action="store_true", help="one round of few tokens, the small base, 64 adapters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the models are made (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the models for the next run")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.tokens, arguments.registered = 1, 16, 64
        arguments.sizes = arguments.sizes[:1]
    arguments.only = arguments.only or list(MEASUREMENTS)
    return arguments


def plan(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """What is measured, of which base, with adapters of which layers."""
    return [
        (name, size, targets)
        for targets in arguments.targets
        for name in arguments.only
        # What the many adapters try is the bookkeeping, which is the same for any base, and most of a small one's time.
        for size in (arguments.sizes[:1] if name == "zipf" else arguments.sizes)
    ]


def make(fleet: Fleet, arguments: argparse.Namespace) -> dict[str, int]:
    """In a process of its own, so that what it holds is gone when the measurements begin. Bytes, by order."""
    needed: dict[tuple[str, str, int], Order] = {}
    for name, size, targets in plan(arguments):
        order = mixing.ordered(name, size, targets, arguments.rounds, arguments.registered)
        kind = (order.size, order.targets, order.rank)
        needed[kind] = max(order, needed.get(kind, order), key=lambda one: one.count)
    command = [sys.executable, "-m", "bench.fleet", str(fleet.folder), *map(str, needed.values())]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(made.stdout)
    return found


def run(arguments: argparse.Namespace, fleet: Fleet, blas: Blas) -> Run:
    with Lines("bench.client") as lines:
        counts = (arguments.rounds, arguments.tokens, arguments.registered)
        done = Run(Client(lines), fleet, blas, *counts, arguments.streams, say)
        for name, size, targets in plan(arguments):
            MEASUREMENTS[name](done, size, targets)
    return done


def rows(targets: str, sizes: list[str]) -> list[Row]:
    """The targets of every figure, with OpenBLAS; of what was not measured, nothing is shown."""
    return [row for size in sizes for row in (*_mola_rows(f"{size} {targets}"), *_other_rows(f"{size} {targets}"))]


def _mola_rows(name: str) -> list[Row]:
    found = []
    for streams in WAVES:
        series = f"{name}, {streams} streams"
        found += [
            Row(f"{series}: mixed over same", f"{series}, mixed", f"{series}, same", "≥", (0.95, None)),
            Row(f"{series}: same over the plain base", f"{series}, same", f"{series}, plain", "≥", (0.85, None)),
            Row(f"{series}: mixed over the plain base", f"{series}, mixed", f"{series}, plain", "≥", (None, None)),
        ]
    return found


def _other_rows(name: str) -> list[Row]:
    series = f"{name}, {AT_ONCE} streams"
    less = [f"{name}, {where}: cold less warm" for where in ("alone", "beside a stream")]
    found = [
        Row(f"{series}: Zipf over one adapter", f"{series}, Zipf", f"{series}, one adapter", "≥", (0.8, None)),
        *(Row(f"{label}, to the first token, s", label, None, "≤", (0.05, None)) for label in less),
    ]
    pause = f"{name}, beside a stream: longest pause"
    found += [
        Row(f"{pause}, cold, in steps", f"{pause}, cold, in steps", None, "≤", (2, None)),
        Row(f"{pause}, warm, in steps", f"{pause}, warm, in steps", None, "≤", (None, None)),
        Row(f"{pause}, cold less warm, in steps", f"{pause}, cold less warm, in steps", None, "≤", (None, None)),
        Row(f"{pause}, undisturbed, in steps", f"{pause}, undisturbed, in steps", None, "≤", (None, None)),
        Row(f"{pause}, cold over warm", f"{pause}, cold", f"{pause}, warm", "≤", (None, None)),
    ]
    for count in RESIDENT:
        series = f"{name}, {count} adapters: measured over expected"
        found.append(Row(series, series, None, "≤", (None, None)))
    return found


def mola_table(samples: report.Samples, name: str) -> Shown | None:
    """As MOLA published it: medians, and what mixing costs, as a median over the rounds."""
    lines = []
    for streams, theirs in MOLA.items():
        series = [samples.get(f"{name}, {streams} streams, {side}") for side in ("plain", "same", "mixed")]
        plain, same, mixed = series
        if plain is None or same is None or mixed is None:
            return None
        lost = 1 - statistics.median(one / other for one, other in zip(mixed, same, strict=True))
        rates = [f"{statistics.median(side):.1f}" for side in (plain, same, mixed)]
        lines.append((str(streams), *rates, f"{lost:.1%}", f"{theirs:.0%}"))
    head = ("streams", "plain base", "same adapter", "mixed", "mixed costs", "as MOLA says of its own")
    return Shown(f"Eight adapters, {name}: tokens/s", head, [*lines])


def show(done: Run, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print all tables; returns the rows of those with targets."""
    against = [row for targets in arguments.targets for row in rows(targets, arguments.sizes)]
    judged = report.show(done.samples, done.blas, against)
    names = [f"{size} {targets}" for targets in arguments.targets for size in arguments.sizes]
    published = [mola_table(done.samples, name) for name in names]
    for table in [*filter(None, published), *done.tables]:
        report.table(*table)
    return judged


def show_bytes(found: dict[str, int]) -> None:
    lines = [(*text.split(":"), f"{nbytes:,}") for text, nbytes in found.items()]
    report.table("Adapters", ("base", "layers", "rank", "how many", "bytes of each"), lines)


def main() -> None:
    # Also this way, no server is to be left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse()
    fleet = Fleet(arguments.cache.absolute())
    facts = report.machine()
    # It has no part in this.
    del facts["mlx_lm.server flags"]
    report.show_machine(facts)
    written = {"machine": facts, "rounds": arguments.rounds, "tokens": arguments.tokens, "runs": {}}
    try:
        written["bytes of an adapter"] = found = make(fleet, arguments)
        show_bytes(found)
        for blas in kinds(arguments.blas):
            done = run(arguments, fleet, blas)
            tables = [table._asdict() for table in done.tables]
            written["runs"][blas] = {"samples": done.samples, "rows": show(done, arguments), "tables": tables}
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(written, indent=1, ensure_ascii=False))
    except Broken as error:
        sys.exit(f"bench.adapters: {error}")
    finally:
        if not arguments.keep:
            shutil.rmtree(fleet.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
