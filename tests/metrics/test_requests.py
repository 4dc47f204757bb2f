"""What one request adds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mlx_roster.metrics import Account, Metrics
from mlx_roster.registry.overview import Memory, Overview, Preloads
from tests.metrics.scraped import OPENMETRICS, READY, account, busy, exposed, families

NOTHING = Overview("0", 1.0, Memory(100, 20, 10), 0, Preloads(), None, (READY,))


def added(*accounts: Account) -> dict[tuple[str, ...], float]:
    """What there is after these, but for gauges and buckets: names without the prefix, and labels by their names."""
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: True)
    for one in accounts:
        metrics.ended(one)
    return {
        (key[0].removeprefix("mlx_roster_"), *key[1:]): value
        for family in exposed(metrics).values()
        if family.name.startswith("mlx_roster_") and family.kind != "gauge"
        for key, value in family.samples.items()
        if not key[0].endswith("_bucket") and value
    }


SERVED = {
    # the labels in the order of their names: adapter, finished_reason, model, operation, status
    ("requests_total", "pirate", "atlas", "chat", "200"): 1,
    ("request_success_total", "pirate", "stop", "atlas"): 1,
    ("prompt_tokens_total", "pirate", "atlas"): 30,
    ("prompt_tokens_cached_total", "pirate", "atlas"): 20,
    ("generation_tokens_total", "pirate", "atlas"): 5,
    ("reasoning_tokens_total", "pirate", "atlas"): 2,
    ("spec_decode_num_accepted_tokens_total", "pirate", "atlas"): 2,
    ("spec_decode_num_draft_tokens_total", "pirate", "atlas"): 3,
    ("time_to_first_token_seconds_count", "atlas"): 1,
    ("time_to_first_token_seconds_sum", "atlas"): 0.5,
    ("request_time_per_output_token_seconds_count", "atlas"): 1,
    ("request_time_per_output_token_seconds_sum", "atlas"): 0.25,
    ("e2e_request_latency_seconds_count", "atlas"): 1,
    ("e2e_request_latency_seconds_sum", "atlas"): 2,
}


def test_one_that_was_served() -> None:
    assert added(account()) == SERVED


def test_two_are_twice_as_much() -> None:
    assert added(account(), account()) == {key: 2 * value for key, value in SERVED.items()}


def test_several_choices() -> None:
    # One token after the other takes half a second; one choice begins late, and has fewer of them.
    took = {"generating": 0.5 * (3 + 3 + 0), "further_tokens": 3 + 3 + 0}
    found = added(account(adapter=None, finishes=["stop", "length", "stop"], completion_tokens=9, **took))
    assert found["request_success_total", "", "stop", "atlas"] == 2
    assert found["request_success_total", "", "length", "atlas"] == 1
    assert found["request_time_per_output_token_seconds_sum", "atlas"] == 0.5


@pytest.mark.parametrize(("status", "code"), [(499, None), (200, "worker_crashed"), (503, "draining")])
def test_one_that_was_cut(status: int, code: str | None) -> None:
    found = added(account(status=status, code=code, finishes=[], prompt_tokens=0, cached_tokens=0))
    cut = {
        key: value
        for key, value in SERVED.items()
        if not key[0].startswith(("request_", "e2e_", "requests", "prompt_"))
    }
    errors = {} if code is None else {("request_errors_total", code, "atlas"): 1}
    assert found == {**cut, **errors, ("requests_total", "pirate", "atlas", "chat", str(status)): 1}


def test_one_of_a_single_token_says_nothing_of_the_time_between() -> None:
    found = added(account(completion_tokens=1, generating=0.0, further_tokens=0))
    assert ("request_time_per_output_token_seconds_count", "atlas") not in found
    assert found["time_to_first_token_seconds_count", "atlas"] == 1


def test_one_that_is_about_no_model() -> None:
    assert added(Account(started=1.0, ended=1.5, status=200)) == {("requests_total", "", "", "other", "200"): 1}


def test_gaps() -> None:
    metrics = Metrics(lambda: NOTHING, listed=lambda model, adapter: True)
    gap = metrics.gaps("atlas", "pirate")
    for seconds in (0.005, 0.02, 0.02, 100.0):
        gap(seconds)
    found = exposed(metrics)["mlx_roster_inter_token_latency_seconds"].samples
    name = "mlx_roster_inter_token_latency_seconds"
    assert found[f"{name}_bucket", "0.01", "atlas"] == 1
    assert found[f"{name}_bucket", "0.025", "atlas"] == 3
    assert found[f"{name}_bucket", "80.0", "atlas"] == 3
    assert found[f"{name}_count", "atlas"] == 4


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS, ""])
def test_in_pieces_it_is_the_same(accept: str) -> None:
    metrics = busy()

    async def both() -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        return metrics.render(accept), await metrics.rendered(accept)

    (whole, media_type), (pieces, same) = asyncio.run(both())
    assert same == media_type
    assert b"mlx_roster_event_loop_tasks 1.0\n" in whole

    def stable(body: bytes) -> list[bytes]:
        return [line for line in body.splitlines() if not line.startswith((b"process_", b"python_gc_"))]

    assert stable(pieces) == stable(whole)
    if accept == OPENMETRICS:
        assert {family.name for family in families(pieces.decode())} == set(exposed(metrics))


def test_nothing_of_nobody() -> None:
    metrics = Metrics(lambda: replace(NOTHING, models=()))
    kinds = {family.name: family.samples for family in exposed(metrics).values() if "model" in family.labels}
    assert kinds == {}
