"""The swap policy, simulated: the real state machine against plain FIFO, on the same made-up arrivals.

    python -m bench.simulation                                    the table, about a minute
    python -m bench.simulation --plot docs/simulation.png         and the picture
    python -m bench.simulation --set max_wait=20 --only hot       another policy

What is simulated, and what it should come to: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from bench.simulation.fifo import Fifo
from bench.simulation.figures import Figures, figures, show
from bench.simulation.rostered import SIZE, Rostered
from bench.simulation.world import Outcome, Scenario, poisson
from mlx_roster.config import Multiple
from mlx_roster.registry.policy import Policy

#: Requests per second.
RATES = {
    "hot and cold": {"A": 0.6, "B": 0.1},
    "busy and cold": {"A": 2.0, "B": 0.1},
    "three agents": {"A": 0.3, "B": 0.3, "C": 0.05},
}
LOADS = (6.0, 1.5)

Run = Callable[[Scenario, float, int], Outcome]


def contestants(policy: Policy, *, proven: bool) -> dict[str, Run]:
    """By name: what is compared. Each takes a scenario, the seconds that requests come for, and a seed."""

    def under(policy: Policy) -> Run:
        return lambda scenario, seconds, seed: Rostered(
            scenario, poisson(scenario.rates, seconds, seed), policy, proven=proven
        ).run()

    def fifo(scenario: Scenario, seconds: float, seed: int) -> Outcome:
        return Fifo(scenario, poisson(scenario.rates, seconds, seed), policy.queue_timeout).run()

    return {
        "mlx-roster": under(policy),
        "FIFO with draining": fifo,
        "collation only": under(replace(policy, max_wait=math.inf)),
    }


def policy_of(changes: Sequence[str]) -> Policy:
    """The package's own, with `name=value` changed; "3x" are multiples of the load time."""
    changed: dict[str, float | int | Multiple] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in {field.name for field in fields(Policy)}:
            raise SystemExit(f"a policy has no {name}: it has {', '.join(field.name for field in fields(Policy))}")
        changed[name] = Multiple(float(value[:-1])) if value.endswith("x") else float(value)
    return replace(Policy(SIZE), **changed)  # type: ignore[arg-type]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=1.0, help="for which requests come (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the policy: max_wait=20")
    parser.add_argument("--only", default="", help="scenarios whose names begin so")
    parser.add_argument("--policies", nargs="+", default=[""], help="some only, by how their names begin")
    parser.add_argument("--proven", action="store_true", help="check every invariant after every event: slow")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there: needs the `bench` extra")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    policy = policy_of(arguments.set)
    compared = contestants(policy, proven=arguments.proven)
    rows: list[Figures] = []
    drawn: list[tuple[str, Scenario, dict[str, list[Outcome]]]] = []
    for name, rates in RATES.items():
        for load in LOADS if name.startswith(arguments.only) else ():
            scenario, runs = Scenario(rates, load), {}
            for contestant, run in compared.items():
                if contestant.startswith(tuple(arguments.policies)):
                    runs[contestant] = [run(scenario, arguments.hours * 3600, seed) for seed in range(arguments.seeds)]
                    rows.append(figures(name, load, contestant, runs[contestant], arguments.hours))
            if load == LOADS[0]:
                drawn.append((name, scenario, runs))
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if arguments.plot:
        from bench.simulation.plot import draw  # matplotlib is for those who want a picture

        draw(arguments.plot, drawn)


if __name__ == "__main__":
    main()
