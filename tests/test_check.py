from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mlx_roster.check import Report, check, render
from mlx_roster.config import Roster
from mlx_roster.config.load import parse
from mlx_roster.config.machine import recommended_working_set
from tests.loaders import hub_cache
from tests.loaders.test_sizes import mlxlm, tensors, write

KIB = 2**10


@pytest.fixture(autouse=True)
def _empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache.use(tmp_path / "hub", monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Models of 10, 20 and 40 KiB, and adapters of 1 and 2 KiB."""
    for name, size in (("small", 10 * KIB), ("middle", 20 * KIB), ("large", 40 * KIB)):
        write(tmp_path / name / "model.safetensors", tensors(size), size)
        (tmp_path / name / "config.json").write_text("{}")
    for name, size in (("one", KIB), ("two", 2 * KIB)):
        mlxlm(tmp_path / name, {"model.layers.0.self_attn.q_proj.lora_a": size})
    return tmp_path


def roster(base: Path, models: str, budget: str = "100KiB", headroom: str = "0%") -> Roster:
    return parse(f"memory: {{budget: {budget}, headroom: {headroom}}}\nmodels: {models}", name="roster.yaml", base=base)


def shown(report: Report, *, terminal: bool = False, width: int = 200) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    render(report, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_all_fit_together(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./small, adapters: {x: ./one, y: ./two}}, b: {source: ./large}}"))
    assert (report.exit_code, report.together) == (0, ("a", "b"))
    assert [(model.weights, model.adapters, model.estimated) for model in report.models] == [
        (10 * KIB, 8 * KIB, 18 * KIB),
        (40 * KIB, 0, 40 * KIB),
    ]
    machine = shown(report)[4].partition(" on ")[2]
    assert shown(report) == [
        "model  source  weights  adapters  kv   estimated",
        "a      small   10 KiB   8 KiB     0 B  18 KiB     fits",
        "b      large   40 KiB   0 B       0 B  40 KiB     fits",
        "",
        f"budget: 100 KiB on {machine}",
        "all 2 models fit together: 58 KiB of 100 KiB",
    ]


def test_adapters_beyond_the_slots_cost_nothing_and_headroom_is_added(base: Path) -> None:
    models = "{a: {source: ./small, max_adapters: 1, adapters: {x: ./one, y: ./two}}}"
    (model,) = check(roster(base, models, headroom="50%")).models
    assert (model.adapters, model.estimated) == (4 * KIB, 21 * KIB)


def test_kv_caches_are_reserved_for_beside_the_headroom(base: Path) -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 4}
    (base / "small/config.json").write_text(json.dumps(config))
    models = "{a: {source: ./small, max_concurrency: 2}, b: {source: ./small}, c: {source: ./small, max_context: 1}}"
    found = check(roster(base, models, headroom="50%")).models
    # 128 bytes a token; of 32 sequences not more than a quarter of the weights.
    assert [(model.kv, model.estimated) for model in found] == [
        (KIB, 16 * KIB),
        (10 * KIB // 4, 35 * KIB // 2),
        (10 * KIB // 4, 35 * KIB // 2),
    ]


def test_one_model_that_fits(base: Path) -> None:
    assert shown(check(roster(base, "{a: {source: ./small}}")))[-1] == "it fits: 10 KiB of 100 KiB"


def test_what_drafts_for_a_model_is_part_of_it(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./large, draft: [{model: ./small}, {model: b}]}, b: {source: ./middle}}"))
    assert [model.weights for model in report.models] == [70 * KIB, 20 * KIB]
    report = check(roster(base, "{a: {source: ./large, draft: {model: org/far}}}"))
    assert report.models[0].remark == "its draft org/far is not downloaded yet; the first request for it downloads it"
    report = check(roster(base, "{a: {source: ./large, draft: {model: ./gone}}}"))
    assert report.models[0].problems == ("draft gone: its folder does not exist",)


def test_not_all_fit_together(base: Path) -> None:
    models = "{l: {source: ./large}, s: {source: ./small}, m: {source: ./middle}, n: {source: ./middle}}"
    report = check(roster(base, models, budget="59KiB"))
    assert (report.exit_code, report.together) == (0, ("s", "m", "n"))
    assert shown(report)[-1] == (
        "at most 3 of 4 models fit at once: s, m, n (50 KiB of 59 KiB); others are loaded in their place when asked for"
    )


def test_a_model_that_never_fits(base: Path) -> None:
    report = check(roster(base, "{l: {source: ./large}, s: {source: ./small}}", budget="30KiB"))
    assert (report.exit_code, report.together) == (1, ("s",))
    assert [model.fits for model in report.models] == [False, True]
    assert "never fits: 10 KiB over the budget" in shown(report)[1]


def test_nothing_fits(base: Path) -> None:
    report = check(roster(base, "{s: {source: ./small}}", budget="1KiB"))
    assert (report.exit_code, report.together) == (1, ())
    assert shown(report)[-1] == "nothing fits"


def test_models_that_are_not_here(base: Path) -> None:
    (base / "small/config.json").unlink()
    models = "{a: {source: ./missing}, b: {source: org/name}, c: {source: ./small}, d: {source: ./large}}"
    report = check(roster(base, models))
    assert report.exit_code == 1
    assert [model.problems for model in report.models] == [
        ("its folder does not exist",),
        (),
        ("there is no config.json",),
        (),
    ]
    lines = shown(report)
    assert lines[2].split(maxsplit=6) == [
        "b", "org/name", "-", "-", "-", "-", "not downloaded yet; the first request for it downloads it"
    ]  # fmt: skip
    assert lines[-2:] == [
        "not counted, since the files are not here or not whole: 3 models",
        "it fits: 40 KiB of 100 KiB",
    ]


def test_models_that_are_not_here_and_will_not_come(base: Path) -> None:
    models = "{a: {source: org/name}, b: {source: ./small, draft: {model: org/far}}}"
    report = check(parse(f"offline: true\nmodels: {models}", name="roster.yaml", base=base))
    assert report.exit_code == 1
    assert [model.problems for model in report.models] == [
        ("not downloaded yet, and the roster says offline",),
        ("its draft org/far is not downloaded yet, and the roster says offline",),
    ]


def test_the_environment_may_keep_a_model_from_coming_too(base: Path) -> None:
    (base / "roster.yaml").write_text("models: {a: {source: org/name}}")
    command = [sys.executable, "-m", "mlx_roster", "check", str(base / "roster.yaml")]
    for value, code, words in (
        ("1", 1, "and HF_HUB_OFFLINE is set"),
        ("0", 0, "the first request for it downloads it"),
    ):
        env = os.environ | {"HF_HUB_CACHE": str(base / "hub"), "HF_HUB_OFFLINE": value}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (code, "")
        assert f"not downloaded yet{',' if code else ';'} {words}" in done.stdout


def test_no_model_is_here(base: Path) -> None:
    report = check(roster(base, "{a: {source: org/name}}"))
    assert report.exit_code == 0
    assert shown(report)[-1].startswith("not counted")


def test_a_roster_without_models(base: Path) -> None:
    report = check(parse("discover: {hub_cache: true}", name="roster.yaml", base=base))
    assert report.exit_code == 0
    assert shown(report)[0] == "no model is listed"


def test_a_budget_beyond_the_machine(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./small}}", budget="1000TiB"))
    assert report.exit_code == 1
    assert shown(report)[-2].startswith("the server would not start: memory.budget: 1000 TiB is more than the ")


def test_pins_and_preloads_over_the_budget(base: Path) -> None:
    models = "{a: {source: ./small, pin: true}, b: {source: ./small, preload: true}}"
    assert check(roster(base, models)).exit_code == 0
    report = check(roster(base, models, budget="15KiB"))
    assert report.exit_code == 1
    assert any(line.startswith("the server would not start: the models with pin or preload") for line in shown(report))


def test_a_bad_adapter_is_told_and_its_base_still_counted(base: Path) -> None:
    (base / "two/adapters.safetensors").write_bytes(b"x")
    report = check(roster(base, "{a: {source: ./small, adapters: {x: ./one, y: ./two, z: ./none}}}"))
    (model,) = report.models
    assert (report.exit_code, model.fits, model.estimated) == (1, True, 12 * KIB)
    assert shown(report)[1].partition("fits")[2] == (
        "; adapter y: adapters.safetensors is cut short or no safetensors file; adapter z: its folder does not exist"
    )


def test_the_budget_is_a_share_of_the_machine(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./small}}", budget="50%"))
    assert report.working_set == recommended_working_set()
    assert report.budget == report.working_set // 2


def test_a_source_elsewhere_is_shown_whole(base: Path) -> None:
    (model,) = check(roster(base / "one", "{a: {source: ../small}}")).models
    assert model.source == str(base / "small")


def test_a_terminal_gets_a_table(base: Path) -> None:
    lines = shown(check(roster(base, "{'[bold]a': {source: ./small}}")), terminal=True)
    assert lines[0].split() == ["model", "source", "weights", "adapters", "kv", "estimated"]
    assert lines[1].split() == ["[bold]a", "small", "10", "KiB", "0", "B", "0", "B", "10", "KiB", "fits"]
    assert lines[-1] == "it fits: 10 KiB of 100 KiB"


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (140, ["model", "source", "weights", "adapters", "kv", "estimated"]),
        (110, ["model", "source", "weights", "estimated"]),
        (80, ["model", "weights", "estimated"]),
        (64, ["model", "estimated"]),
    ],
)
def test_names_are_whole_in_a_narrow_terminal(base: Path, width: int, heads: list[str]) -> None:
    """What gives way are columns, and the words at the end."""
    models = "{Qwen3-4B-Instruct-2507-4bit: {source: org/Qwen3-4B-Instruct-2507-4bit}, a: {source: ./small}}"
    lines = shown(check(roster(base, models)), terminal=True, width=width)
    table = lines[: lines.index("")]
    assert table[0].split() == heads
    assert table[1].split()[0] == "Qwen3-4B-Instruct-2507-4bit"
    assert ("org/Qwen3-4B-Instruct-2507-4bit" in table[1]) == ("source" in heads)
    assert max(map(len, table)) <= width
    assert table[-1].startswith("a ")
    assert table[-1].endswith("fits")


def test_a_name_wider_than_the_terminal_is_folded(base: Path) -> None:
    models = "{Qwen3-4B-Instruct-2507-4bit: {source: ./small}}"
    lines = shown(check(roster(base, models)), terminal=True, width=30)
    assert "".join(line.split(" ")[0] for line in lines[1 : lines.index("")]) == "Qwen3-4B-Instruct-2507-4bit"


def test_lines_for_a_pipe_are_not_wrapped(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./small}, b: {source: ./missing}}"))
    assert shown(report, width=20) == shown(report, width=200)


def test_json(base: Path) -> None:
    report = check(roster(base, "{a: {source: ./small}, b: {source: org/name}}"))
    assert json.loads(report.to_json()) == {
        "budget": 100 * KIB,
        "working_set": report.working_set,
        "together": ["a"],
        "problems": [],
        "remarks": [],
        "models": [
            {
                "name": "a",
                "source": "small",
                "weights": 10 * KIB,
                "adapters": 0,
                "kv": 0,
                "estimated": 10 * KIB,
                "fits": True,
                "problems": [],
                "remark": None,
            },
            {
                "name": "b",
                "source": "org/name",
                "weights": None,
                "adapters": None,
                "kv": None,
                "estimated": None,
                "fits": None,
                "problems": [],
                "remark": "not downloaded yet; the first request for it downloads it",
            },
        ],
    }


OPS = "{name: ops, key: 0123456789abcdef-ops, scopes: [admin]}"


@pytest.mark.parametrize(
    ("key", "more", "remark"),
    [
        ("{models: ['*']}", "", None),
        ("{models: [a, 'sma*', 'a:x', '*:y']}", "", None),
        ("{models: [c]}", "", "auth.keys: laptop opens no model: none is called c"),
        ("{models: [c, 'd*']}", "", "auth.keys: laptop opens no model: none is called c or d*"),
        ("{models: [a, c]}", "", "auth.keys: of laptop, no model is called c"),
        ("{models: ['a:z']}", "", "auth.keys: laptop opens no model: none is called a:z"),
        ("{models: [gpt]}", "", "auth.keys: laptop opens no model: none is called gpt; aliases do not count, write a"),
        ("{models: [c]}", "discover: {hub_cache: true}", None),
        ("{models: [c]}", "unlisted: {hub: ['*']}", None),
        ("{models: [c]}", "unlisted: {paths: true}", None),
        (
            "{models: [a], scopes: [admin]}",
            "",
            "auth.keys: laptop has models, and lacks the scope infer: it opens none",
        ),
        ("{scopes: [admin]}", "", None),
    ],
)
def test_keys_that_open_less_than_they_say(base: Path, key: str, more: str, remark: str | None) -> None:
    models = "{a: {source: ./small, aliases: [gpt], adapters: {x: ./one, y: ./two}}, small: {source: ./small}}"
    laptop = f"{{name: laptop, key: 0123456789abcdef, {key[1:]}"
    report = check(roster(base, f"{models}\n{more}\nauth: {{keys: [{laptop}, {OPS}]}}"))
    assert report.remarks == (() if remark is None else (remark,))
    assert report.exit_code == 0
    assert remark is None or remark in shown(report)


def test_a_server_that_nobody_can_operate(base: Path) -> None:
    keys = "[{name: laptop, key: 0123456789abcdef}]"
    report = check(roster(base, f"{{a: {{source: ./small}}}}\nauth: {{keys: {keys}}}"))
    assert report.remarks == (
        "auth.keys: none has the scope admin: nobody can use ps, load, reload and the other commands",
    )
    assert check(roster(base, "{a: {source: ./small}}")).remarks == ()
