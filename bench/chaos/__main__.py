"""Chaos: a real server, three models where two fit, mixed traffic, and something done to it every few seconds.

    python -m bench.chaos                          five minutes
    python -m bench.chaos --seconds 30 --seed 7    less, and other draws

Every request is accounted for: a whole answer, an error that docs/api.md has and that something which was done
explains, or a client that left by itself. At temperature 0, whoever gets an answer gets the same one. At the end
everything is unloaded, and the server must hold what it held after its warm-up. More: docs/performance.md.
Ends with 1 where anything was lost or is wrong; the server's log is kept then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench.chaos.run import Plan, run

#: Of what went wrong. The rest is in the JSON file.
SHOWN = 10


def main() -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of traffic (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of all draws (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=usual.clients, help="at a time (default: %(default)s)")
    parser.add_argument(
        "--pace", type=float, nargs=2, default=usual.pace, metavar=("MIN", "MAX"), help="seconds between two deeds"
    )
    parser.add_argument("--keep", action="store_true", help="keep the server's log in any case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")
    arguments = parser.parse_args()
    began = time.monotonic()

    def say(what: str) -> None:
        if not arguments.quiet:
            print(f"{time.monotonic() - began:7.2f} {what}", file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="mlx-roster-chaos-"))
    report = run(Plan(arguments.seconds, arguments.seed, arguments.clients, tuple(arguments.pace)), folder, say)
    print(json.dumps(report.figures, indent=1))
    for wrong in [*report.lost, *report.wrong][:SHOWN]:
        print(f"\n{wrong}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=1))
    print(f"\n{len(report.lost)} lost, {len(report.wrong)} wrong")
    failed = bool(report.lost or report.wrong)
    if failed or arguments.keep:
        print(f"the server's log is in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
