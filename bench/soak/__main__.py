"""A soak: `bench.chaos` for a quarter of an hour, with bad input beside it, and what the server holds once a second.

    python -m bench.soak --plot docs/images/soak.png      fifteen minutes
    python -m bench.soak --seconds 60                     less

Three models where two fit, five adapters, twelve clients, of whom a fifth leave early; every other second a worker is
killed or stopped, the roster rewritten or broken, a model loaded, unloaded or pinned; and one client that only sends
what no server should be sent. Every request is accounted for, as `bench.chaos` says. Ends with 1 where one was lost or
where the server holds more at the end than before. Needs matplotlib for the plot: the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench.chaos.ledger import Deed, Ledger
from bench.chaos.run import Plan, run
from bench.chaos.server import Server
from bench.soak.bad import Vandal
from bench.soak.samples import Sampler

MINUTES = 15

#: Of what went wrong. The rest is in the JSON file.
SHOWN = 10


class Books:
    """A `Companion` that keeps the ledger for afterwards."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, str]] = []
        self.deeds: list[Deed] = []

    async def run(self, server: Server, ledger: Ledger) -> None:
        self.ends, self.deeds = ledger.ends, ledger.deeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0 * MINUTES, help="of traffic (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=6, help="of all draws (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="at a time (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what was held there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, samples too")
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(what: str) -> None:
        if not arguments.quiet:
            print(f"{time.monotonic() - began:7.2f} {what}", file=sys.stderr, flush=True)

    sampler, books = Sampler(), Books()
    folder = Path(tempfile.mkdtemp(prefix="mlx-roster-soak-"))
    plan = Plan(arguments.seconds, arguments.seed, arguments.clients)
    report = run(plan, folder, say, [sampler, Vandal(arguments.seed), books])
    print(json.dumps(report.figures, indent=1))
    for wrong in [*report.lost, *report.wrong][:SHOWN]:
        print(f"\n{wrong}")
    if arguments.json is not None:
        samples = [asdict(sample) for sample in sampler.samples]
        arguments.json.write_text(json.dumps(asdict(report) | {"samples": samples}, indent=1))
    if arguments.plot is not None:
        from bench.soak.plot import draw

        draw(arguments.plot, sampler.samples, books.ends, books.deeds)
    print(f"\n{len(report.lost)} lost, {len(report.wrong)} wrong; the server's log is in {folder}")
    sys.exit(bool(report.lost or report.wrong))


if __name__ == "__main__":
    main()
