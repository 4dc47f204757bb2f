"""What the facts come to, and how that is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlx_roster import __version__
from mlx_roster.check import ModelCost, Report
from mlx_roster.config import Roster
from mlx_roster.config.load import parse
from mlx_roster.core import Device
from mlx_roster.doctor import report
from mlx_roster.doctor.facts import (
    Address,
    Blas,
    Cache,
    Engine,
    Facts,
    Hub,
    Limits,
    Memory,
    Package,
    Platform,
    RosterFacts,
)
from mlx_roster.doctor.finding import Finding
from mlx_roster.doctor.findings import findings

GIB = 2**30
PATH = Path("roster.yaml")
COST = ModelCost("atlas", "./atlas", GIB, 0, 0, GIB, fits=True)
REPORT = Report(8 * GIB, 12 * GIB, (COST,))


def roster(text: str = "", models: str = "{atlas: {source: ./atlas}}") -> Roster:
    return parse(f"{text}\nmodels: {models}", name="roster.yaml", base=Path("/nowhere"))


MAC = Facts(
    platform=Platform("Darwin", "arm64", "macOS 15.5", (3, 12, 1)),
    packages=(Package("mlx", ">=0.32", "0.32.4", fits=True), Package("mlx-lm", "~=0.32.2", "0.32.2", fits=True)),
    engine=Engine(Device("Apple M4", "metal", 16 * GIB, 12 * GIB)),
    memory=Memory(16 * GIB, 10 * GIB, 0, 0),
    blas=Blas(None),
    address=Address("127.0.0.1", 8080, "free"),
    limits=Limits(10240, None, 1024),
    cache=Cache(Path("/hub"), exists=True, writable=True, free=100 * GIB, size=GIB, models=2),
    hub=Hub(None, reachable=True, token=False),
    roster=RosterFacts(PATH, roster(), report=REPORT),
)
LINUX = replace(
    MAC,
    platform=Platform("Linux", "x86_64", "Debian 12", (3, 11, 2)),
    engine=Engine(Device("AMD", "cpu", 16 * GIB, 16 * GIB)),
    memory=replace(MAC.memory, wired_limit=None),
    blas=Blas("libopenblas.so.0"),
)


def bad(facts: Facts) -> list[Finding]:
    """What is not all right."""
    return [finding for finding in findings(facts) if finding.level != "ok"]


def only(facts: Facts) -> Finding:
    (found,) = bad(facts)
    return found


@pytest.mark.parametrize("facts", [MAC, LINUX])
def test_nothing_stands_in_the_way(facts: Facts) -> None:
    assert bad(facts) == []


def row(
    level: str, area: str, words: str, remedy: str | None, **changes: object
) -> tuple[dict[str, object], str, str, str, str | None]:
    return changes, level, area, words, remedy


HOME = "127.0.0.1"


def memory(available: int = 10, swap: int = 0, wired: int = 0, *largest: tuple[str, int, int]) -> Memory:
    return Memory(16 * GIB, available * GIB, swap * GIB, wired, largest)


def ours(version: str, health: int, status: str) -> Address:
    return Address(HOME, 8080, "ours", "", "http://h", version, health, status)


def lm(version: str | None) -> tuple[Package]:
    return (Package("mlx-lm", "~=0.32.2", version, fits=False),)


DENIED = Address("::1", 80, "denied", "Permission denied")
ROSETTA = Platform("Darwin", "x86_64", "macOS 15.5", (3, 12, 1), translated=True)
UNFINISHED = replace(MAC.cache, unfinished=("a/b", "c", "d", "e"))
AWAY = {"hub": Hub(None, reachable=False, token=False)}
FAR = RosterFacts(PATH, roster(models="{a: {source: org/a}}"))

ROWS = [
    row("problem", "platform", "Rosetta", "arm64", platform=ROSETTA),
    row("problem", "platform", "Intel", "Linux", platform=Platform("Darwin", "x86_64", "macOS 13.1", (3, 12, 1))),
    row("problem", "platform", "13.1", "macOS 14", platform=Platform("Darwin", "arm64", "macOS 13.1", (3, 12, 1))),
    row("problem", "platform", "3.9.6", "newer", platform=Platform("Darwin", "arm64", "macOS 15.5", (3, 9, 6))),
    row(
        "problem",
        "packages",
        "0.33.0",
        "'mlx-lm~=0.32.2'",
        packages=lm("0.33.0"),
    ),
    row(
        "problem",
        "packages",
        "not installed",
        "pip install",
        packages=lm(None),
    ),
    row("problem", "engine", "without a backend", "pip install", engine=Engine(None, "ImportError: libmlx.dylib")),
    row("problem", "engine", "Metal", "arm64", engine=Engine(Device("M4", "cpu", GIB, GIB))),
    row(
        "warning",
        "memory",
        "big (9 GiB)",
        "memory.budget",
        memory=memory(2, 0, 0, ("big", 7, 9 * GIB)),
    ),
    row(
        "warning",
        "memory",
        "6 GiB are swapped",
        "memory.budget",
        memory=memory(swap=6),
    ),
    row("warning", "memory", "macOS", "wired_limit_mb=13107", memory=memory(wired=16000)),
    row("note", "memory", "12.7 GiB", None, memory=memory(wired=13000)),
    row("problem", "limits", "200 open files", "LimitNOFILE", limits=Limits(200, 200, 1024)),
    row("warning", "limits", "1024 open files", "LimitNOFILE", limits=Limits(1024, 1024, 1024)),
    row("note", "limits", "128 connections", "kern.ipc.somaxconn", limits=Limits(10240, None, 128)),
    row("note", "roster", "the 3 models", "mlx-roster init", roster=RosterFacts(None, roster(), discovered=3)),
    row("warning", "roster", "no MLX model", "mlx-roster demo", roster=RosterFacts(None, roster())),
    row("problem", "roster", "r:1: no (and 1 more)", "init", roster=RosterFacts(PATH, problems=("r:1: no", "r:2: no"))),
    row("note", "environment", "HOST=::1 and PORT=80", "unset", environment={"HOST": "::1", "PORT": "80"}),
    row("note", "environment", "/x", "unset PYTHONPATH", environment={"PYTHONPATH": "/x"}),
    row("note", "environment", "/x.so", None, environment={"LD_PRELOAD": "/x.so"}),
    row(
        "problem",
        "address",
        "Permission denied",
        "--port 8080",
        address=DENIED,
    ),
    row("problem", "address", "something else", "--port 8081", address=Address("127.0.0.1", 8080, "taken")),
    row("problem", "address", "no address of this", "--host", address=Address("1.2.3.4", 8080, "unknown", "no")),
    row(
        "problem",
        "server",
        "stalled",
        "ps --url http://h",
        address=ours(__version__, 503, "stalled"),
    ),
    row(
        "note",
        "server",
        "shutting down",
        None,
        address=ours(__version__, 503, "draining"),
    ),
    row(
        "warning",
        "server",
        __version__,
        "restart",
        address=ours("0.0.9", 200, "ok"),
    ),
    row("problem", "Hub cache", "cannot be written", "chown", cache=replace(MAC.cache, writable=False)),
    row("warning", "Hub cache", "1 GiB are left", "hf cache", cache=replace(MAC.cache, free=GIB)),
    row(
        "note",
        "Hub cache",
        "a/b, c, d and 1 more",
        "pull a/b",
        cache=UNFINISHED,
    ),
    row("warning", "Hub cache", "missing from a/b", "pull a/b", cache=replace(MAC.cache, broken=("a/b",))),
    row("note", "Hub", "nothing is downloaded", "unset HF_HUB_OFFLINE", hub=Hub("HF_HUB_OFFLINE", None, False)),
    row("note", "Hub", "no model of the roster needs it", None, **AWAY),
    row(
        "warning",
        "Hub",
        "does not answer",
        "HTTPS_PROXY",
        **AWAY,
        roster=RosterFacts(PATH, roster(models="{a: {source: org/a}}")),
    ),
]


@pytest.mark.parametrize(("changes", "level", "area", "words", "remedy"), ROWS)
def test_a_fact_and_what_it_comes_to(
    changes: dict[str, Any], level: str, area: str, words: str, remedy: str | None
) -> None:
    found = only(replace(MAC, **changes))
    assert (found.level, found.area) == (level, area)
    assert words in found.text
    assert (remedy is None) == (found.remedy is None)
    assert (remedy or "") in (found.remedy or "")


@pytest.mark.parametrize(
    ("blas", "level", "words"),
    [(Blas(None), "warning", "not installed"), (Blas("libopenblas.so.0", off=True), "note", "MLX_ROSTER_OPENBLAS")],
)
def test_openblas(blas: Blas, level: str, words: str) -> None:
    found = only(replace(LINUX, blas=blas))
    assert (found.level, found.area) == (level, "OpenBLAS")
    assert words in found.text
    # A GPU has no use for it.
    assert bad(replace(LINUX, blas=blas, engine=Engine(Device("H200", "cuda", GIB, GIB)))) == []


def test_host_of_conda_is_named_as_such() -> None:
    overrides = ('HOST: "arm64-apple-darwin20.0.0" is not a loopback address',)
    facts = replace(
        MAC,
        environment={"HOST": "arm64-apple-darwin20.0.0"},
        address=None,
        roster=RosterFacts(PATH, roster(), overrides=overrides, report=REPORT),
    )
    found = only(facts)
    assert (found.level, found.area) == ("problem", "environment")
    assert "conda" in found.text
    assert "env -u HOST" in (found.remedy or "")


def test_what_check_says_of_a_roster() -> None:
    models = (
        COST,
        replace(COST, name="huge", estimated=20 * GIB, fits=False),
        replace(COST, name="broken", problems=("its folder does not exist",)),
        ModelCost("far", "org/far", remark="not downloaded yet"),
    )
    given = Report(8 * GIB, 12 * GIB, models, ("the models with pin or preload take too much",))
    found = bad(replace(MAC, roster=RosterFacts(PATH, roster(), report=given)))
    assert [(one.level, one.text) for one in found] == [
        ("problem", "the models with pin or preload take too much"),
        ("problem", "broken: its folder does not exist"),
        ("problem", "larger than the budget of 8 GiB: huge"),
        ("note", "not downloaded yet: org/far"),
    ]
    assert found[-1].remedy == "mlx-roster pull org/far"


def test_a_roster_without_models_is_no_fault_and_serves_nothing() -> None:
    found = only(replace(MAC, roster=RosterFacts(PATH, roster(), report=Report(8 * GIB, 12 * GIB, ()))))
    assert (found.level, found.text) == ("note", f"{PATH} lists no model")


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("server: {host: 0.0.0.0}\nauth: {keys: [{name: a, key: 0123456789abcdef}]}", "note", "unencrypted"),
        ('server: {cors_origins: ["*"]}', "warning", "any web page"),
        ('server: {cors_origins: ["*"]}\nauth: {keys: [{name: a, key: 0123456789abcdef}]}', "note", "any web page"),
    ],
)
def test_exposure(text: str, level: str, words: str) -> None:
    found = only(replace(MAC, roster=RosterFacts(PATH, roster(text), report=REPORT)))
    assert (found.level, found.area) == (level, "keys")
    assert words in found.text


def test_keys_in_a_file_that_all_may_read_and_code_of_models() -> None:
    served = roster(models="{atlas: {source: ./atlas, trust_remote_code: true}}")
    found = bad(replace(MAC, roster=RosterFacts(PATH, served, report=REPORT, readable_by_others=True)))
    assert [one.remedy for one in found] == ["chmod 600 roster.yaml", None]
    assert "trust_remote_code" in found[1].text


def shown(found: Sequence[Finding], *, terminal: bool, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    report.render(found, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_shown_on_a_terminal_and_in_a_pipe() -> None:
    found = findings(replace(MAC, limits=Limits(10240, None, 128), hub=Hub(None, False, False)))
    lines = shown(found, terminal=True)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ok    platform   macOS 15.5, arm64, Python 3.12.1"
    assert "                 → sudo sysctl kern.ipc.somaxconn=1024" in lines
    assert lines[-1] == "2 notes"
    piped = shown(found, terminal=False, width=10)
    assert piped[0] == "ok      platform: macOS 15.5, arm64, Python 3.12.1"
    assert len(piped) == len(found) + 2
    assert report.exit_code(found) == 0
    assert shown(findings(MAC), terminal=False)[-1] == "nothing stands in the way"


def test_json_and_exit_code() -> None:
    found = findings(replace(MAC, limits=Limits(100, 100, 1024)))
    assert report.exit_code(found) == 1
    body = json.loads(report.to_json(found))
    assert body["ok"] is False
    assert {"level", "area", "text", "remedy"} == set(body["findings"][0])
