"""What people are shown of the admin API's answers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from mlx_roster.cli import render

MODEL: dict[str, Any] = {
    "id": "[bold]a",
    "state": "ready",
    "pinned": False,
    "leases": 1,
    "queued": 2,
    "bytes": {"estimated": 2048, "measured": 1024, "growth": 0, "share": None},
    "expires_in": None,
    "cooldown": None,
    "failures": 0,
    "load_seconds": 1.0,
    "progress": None,
    "events": [{"seconds_ago": 9.0, "what": "old"}, {"seconds_ago": 61.0, "what": "ready:\n\x1b[2Jloaded in 0.1 s"}],
}
OVERVIEW: dict[str, Any] = {
    "memory": {"budget": 10_240, "held": 1024, "committed": 2048},
    "preload": {"total": 0, "done": 0, "failed": []},
    "reload": None,
    "models": [MODEL],
}


def shown(overview: dict[str, Any], *, terminal: bool = False, width: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    render.show(overview, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_for_each_model_whatever_its_names_hold(terminal: bool) -> None:
    heads, model, budget = shown(OVERVIEW, terminal=terminal)
    assert heads == "model    state  leases  queued  bytes (estimate)  expires in  pinned  last event"
    assert (
        model
        == "[bold]a  ready       1       2     1 KiB (2 KiB)           -  -       ready:  [2Jloaded in 0.1 s, 1m ago"
    )
    assert budget == "budget: 1 KiB of 10 KiB held, 2 KiB promised"


def test_a_terminal_cuts_lines_and_a_pipe_does_not() -> None:
    assert all(len(line) <= 50 for line in shown(OVERVIEW, terminal=True, width=50)[:2])
    assert len(shown(OVERVIEW, terminal=True, width=50)) == 3
    assert shown(OVERVIEW, width=50) == shown(OVERVIEW, width=200)


REAL = MODEL | {
    "id": "Qwen3-30B-A3B-Instruct-2507-4bit",
    "bytes": {"estimated": 19 * 2**30, "measured": 17 * 2**30},
    "expires_in": 840.0,
    "pinned": True,
}


def test_eighty_columns_have_room_for_what_matters() -> None:
    cold = REAL | {"id": "b", "bytes": {"estimated": 2**30, "measured": None}, "pinned": False}
    heads, model, other, _ = shown({**OVERVIEW, "models": [REAL, cold]}, terminal=True, width=80)
    assert heads == "model                             state          leases  queued   bytes  expires"
    assert model == "Qwen3-30B-A3B-Instruct-2507-4bit  ready, pinned       1       2  17 GiB      14m"
    assert other == "b                                 ready               1       2  ~1 GiB      14m"


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 90, 100, 120])
def test_no_width_cuts_a_figure(width: int) -> None:
    heads, model, _ = shown({**OVERVIEW, "models": [MODEL]}, terminal=True, width=width)
    assert max(len(heads), len(model)) <= width
    columns, cells = heads.split("  "), model.split("  ")
    assert columns[0] == "model"
    assert ("…" in model) <= ("last event" in heads)
    assert "1 KiB" in cells or "1 KiB (2 KiB)" in model


def test_why_a_model_failed_is_never_left_out() -> None:
    failed = REAL | {
        "state": "cooldown",
        "cooldown": 9.0,
        "events": [{"seconds_ago": 3.0, "what": "load failed: " + 80 * "x"}],
    }
    lines = shown({**OVERVIEW, "models": [failed]}, terminal=True, width=80)
    assert f"{failed['id']}: load failed: {80 * 'x'}, 3s ago" in "".join(lines)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"state": "loading", "progress": [50, 200]}, "loading 25%"),
        ({"state": "locating", "progress": [0, 0]}, "locating"),
        ({"state": "cooldown", "cooldown": 12.3}, "cooldown, 12s left"),
    ],
)
def test_how_far_it_is(changes: dict[str, Any], state: str) -> None:
    assert f"  {state}  " in shown({**OVERVIEW, "models": [{**MODEL, **changes}]})[1]


def test_what_needs_attention_follows_the_budget() -> None:
    overview = {
        **OVERVIEW,
        "models": [],
        "preload": {"total": 3, "done": 1, "failed": ["b"]},
        "reload": {"ok": False, "seconds_ago": 7300.0, "error": "roster.yaml:3: no\nroster.yaml:4: no"},
    }
    assert shown(overview)[2:] == [
        "preloading: 1 of 3",
        "preloads that failed: b",
        "the last reload, 2h ago, failed: roster.yaml:3: no roster.yaml:4: no",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59, "59s"), (60, "1m"), (899, "14m"), (3600, "1h"), (200_000, "2d")]
)
def test_time_spans(seconds: float, text: str) -> None:
    assert render.rough(seconds) == text


def test_a_change_has_its_reason_and_its_bytes() -> None:
    fields = {"ticket": 4, "serial": 2, "why": "evicted for b", "bytes": 2048, "seconds": 0.5, "queued": 1024}
    assert render.change({"kind": "evict", "model": "a", "fields": fields}) == (
        'evict a why="evicted for b" bytes=2KiB seconds=0.5 queued=1024'
    )
    assert render.change({"kind": "reload", "model": None, "fields": {"ok": True}}) == "reload - ok=True"
