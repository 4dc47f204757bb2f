"""The simulation of the swap policy: what it says is only worth something if its own books balance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest

from bench.simulation.__main__ import RATES, contestants, policy_of
from bench.simulation.figures import figures
from bench.simulation.rostered import SIZE, Rostered
from bench.simulation.world import LANES, SERVICE, UNLOAD, Outcome, Request, Scenario, poisson
from mlx_roster.config import Multiple
from mlx_roster.registry.policy import Policy

SECONDS = 240.0


def run(name: str, scenario: str) -> Outcome:
    return contestants(Policy(SIZE), proven=True)[name](Scenario(RATES[scenario], load=6.0), SECONDS, 1)


def in_turn(outcome: Outcome) -> bool:
    """Whether the slot had one model at a time."""
    spans = sorted(outcome.spans, key=lambda span: span.start)
    return all(before.end <= after.start + 1e-9 for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize("scenario", RATES)
@pytest.mark.parametrize("name", contestants(Policy(SIZE), proven=True))
def test_counts_add_up(name: str, scenario: str) -> None:
    outcome = run(name, scenario)
    asked = poisson(RATES[scenario], SECONDS, 1)
    assert [(one.model, one.at) for one in outcome.requests] == [(one.model, one.at) for one in asked]
    assert all(one.served + (one.gave_up < math.inf) + one.refused == 1 for one in outcome.requests)
    assert all(one.wait >= 0 for one in outcome.requests if not one.refused)
    assert all(one.wait == pytest.approx(120) for one in outcome.requests if one.gave_up < math.inf)
    assert in_turn(outcome)
    assert outcome.loads >= len(RATES[scenario])
    assert len([span for span in outcome.spans if span.state == "loading"]) == outcome.loads


@pytest.mark.parametrize("name", contestants(Policy(SIZE), proven=True))
def test_never_more_run_than_there_are_lanes(name: str) -> None:
    served = [one for one in run(name, "busy and cold").requests if one.served]
    for one in served:
        assert sum(other.began <= one.began < other.began + SERVICE for other in served) <= LANES


def test_requests_run_while_their_model_has_the_slot() -> None:
    outcome = run("mlx-roster", "three agents")
    for one in outcome.requests:
        until = one.began + SERVICE
        spans = [span for span in outcome.spans if span.model == one.model and span.state != "loading"]
        covered = sum(max(0.0, min(span.end, until) - max(span.start, one.began)) for span in spans)
        # The last model is still there when all is over, and then its span has no end.
        assert covered == pytest.approx(SERVICE) or until > max(span.end for span in outcome.spans)


def alternating(models: Sequence[str], gap: float) -> list[Request]:
    return [Request(number, model, gap * number) for number, model in enumerate(models, 1)]


def test_a_single_user_waits_for_one_load_at_each_switch() -> None:
    scenario = Scenario({"A": 0.0, "B": 0.0}, load=6.0)
    outcome = Rostered(scenario, alternating("ABAB", 20.0), Policy(SIZE), proven=True).run()
    assert outcome.loads == 4
    assert [one.wait for one in outcome.requests] == pytest.approx([6.0, 6.0 + UNLOAD, 6.0 + UNLOAD, 6.0 + UNLOAD])


def test_figures_are_of_those_who_gave_up_too() -> None:
    requests = [
        Request(1, "A", 0.0, began=4.0),
        Request(2, "A", 1.0, gave_up=121.0),
        Request(3, "B", 2.0, refused=True),
    ]
    found = figures("few", 6.0, "none", [Outcome(requests, loads=1)], hours=0.5)
    assert found.served == pytest.approx(100 / 3)
    assert found.loads == 2.0
    a, b = found.models
    assert (a.model, a.served, a.worst) == ("A", 50.0, 120.0)
    assert (b.model, b.served) == ("B", 0.0)


def test_the_policy_can_be_changed() -> None:
    policy = policy_of(["max_wait=20", "min_residency=2x", "max_queued=4"])
    assert (policy.max_wait, policy.min_residency, policy.max_queued) == (20.0, Multiple(2), 4)
    with pytest.raises(SystemExit, match="has no patience"):
        policy_of(["patience=3"])
