"""This server against mlx_lm.server and against mlx-lm by itself, interleaved, on the same models and client.

    python -m bench.serving                 everything, about an hour
    python -m bench.serving --quick         a look: one round, small models only

What is measured, and what it should come to: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import measure, report
from bench.models import Models
from bench.servers import Blas, Broken, Lines
from bench.traffic import Client
from mlx_roster.workers.blas import openblas

CACHE = Path(__file__).parent / ".cache"

MEASUREMENTS: dict[str, Callable[[measure.Bench], None]] = {
    "throughput": measure.throughput,
    "burst": measure.burst,
    "alternation": measure.alternation,
    "cold": measure.cold,
    "pauses": measure.disturbance,
}
LARGE = {"alternation", "cold", "pauses"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blas", choices=["system", "none", "both"], default="both", help="default: both, two tables")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument("--waves", type=int, default=3, help="waves of 16 requests per sample (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), help="some measurements only")
    parser.add_argument("--quick", action="store_true", help="one round of one wave, without the large models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the models are made (default: bench/.cache)")
    parser.add_argument("--keep", action="store_true", help="keep the models for the next run")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.waves = 1, 1
        arguments.only = arguments.only or [name for name in MEASUREMENTS if name not in LARGE]
    arguments.only = arguments.only or list(MEASUREMENTS)
    return arguments


def kinds(asked: str) -> list[Blas]:
    """The BLAS to measure with. Elsewhere than on Linux there is but the one that mlx was built with."""
    if openblas() is None:
        if asked == "system":
            raise Broken("there is no system OpenBLAS to preload")
        return ["none"]
    return {"system": ["system"], "none": ["none"]}.get(asked, ["system", "none"])  # type: ignore[return-value]


def run(arguments: argparse.Namespace, models: Models, blas: Blas) -> measure.Bench:
    with Lines("bench.client") as lines:
        bench = measure.Bench(Client(lines), models, blas, arguments.rounds, arguments.waves, say)
        for name in arguments.only:
            MEASUREMENTS[name](bench)
    return bench


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def make(models: Models, names: Sequence[str]) -> None:
    """In a process of its own, so that what it holds is gone when the measurements begin."""
    large = ["--big"] if LARGE.intersection(names) else []
    subprocess.run([sys.executable, "-m", "bench.models", str(models.folder), *large], check=True)


def main() -> None:
    # Also this way, no server is to be left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse()
    models = Models(arguments.cache.absolute())
    facts = report.machine()
    written = {"machine": facts, "rounds": arguments.rounds, "waves": arguments.waves, "runs": {}}
    report.show_machine(facts)
    try:
        make(models, arguments.only)
        for blas in kinds(arguments.blas):
            samples = run(arguments, models, blas).samples
            rows = report.show(samples, blas)
            written["runs"][blas] = {"samples": samples, "rows": rows}
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(written, indent=1, ensure_ascii=False))
    except Broken as error:
        sys.exit(f"bench.serving: {error}")
    finally:
        if not arguments.keep:
            shutil.rmtree(models.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
