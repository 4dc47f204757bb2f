"""Random arrivals, departures, results, deaths and changes: invariants hold throughout, and everybody is answered.

What is played in CI is always the same. `ROSTER_FUZZ=5000 pytest tests/registry/test_fuzz.py` plays so many games of
each kind instead, other ones each time; what is found wrong is printed as the moves, or the seed, that lead to it.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.registry.gambler import Gambler
from tests.registry.machine import Machine
from tests.registry.replay import RecordedWorld, replay
from tests.registry.world import POLICIES

GAMES = int(os.environ.get("ROSTER_FUZZ", "0"))
TIMEOUT = 0 if GAMES else 120


@pytest.mark.timeout(TIMEOUT)
def test_random_event_fuzz_keeps_every_invariant() -> None:
    games = settings(
        max_examples=GAMES or 300,
        stateful_step_count=60,
        deadline=None,
        database=None,
        derandomize=not GAMES,
        suppress_health_check=list(HealthCheck),
    )
    before = Machine.steps[0]
    run_state_machine_as_test(Machine, settings=games)
    assert GAMES or Machine.steps[0] - before >= 10_000


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("block", range(8))
def test_what_happens_to_a_registry_leads_to_what_the_state_machine_said(block: int) -> None:
    first, games = (random.randrange(10**9), GAMES // 8) if GAMES else (block * 25, 25)
    happenings, granted, killed = 0, 0, 0
    for seed in range(first, first + games):
        policy = POLICIES[seed % len(POLICIES)]
        world = RecordedWorld(policy)
        Gambler(world, seed).play(120)
        world.wind_down()
        try:
            played = replay(world, policy)
            assert played.fates == world.fates
            assert played.workers.asked() == world.asked
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        happenings += len(world.past)
        granted += sum(fate == "granted" for fate in world.fates.values())
        killed += sum(times for what, times in world.asked.items() if what.startswith("kill "))
    assert happenings >= 60 * games
    assert granted >= 5 * games
    assert killed >= games // 10
