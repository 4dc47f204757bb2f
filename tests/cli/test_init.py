"""`mlx-roster init`, and `serve` without a roster: what is made of a Hub cache."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from mlx_roster.cli.inventory import unique
from mlx_roster.cli.skeleton import scalar
from mlx_roster.config.load import load, parse
from mlx_roster.demo import directory
from tests.cli.processes import environment, run
from tests.loaders import hub_cache
from tests.loaders.fake_hub import Files
from tests.loaders.hub_cache import weights
from tests.serving import demo_roster, serving


def model(size: int = 1000) -> Files:
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": weights(size),
    }


def adapter(base: str, **config: object) -> Files:
    told = {"peft_type": "LORA", "base_model_name_or_path": base} | config
    return {"adapter_config.json": json.dumps(told).encode(), "adapter_model.safetensors": weights(100)}


@pytest.fixture
def env(cache: Path) -> dict[str, str]:
    return environment(cache)


def huge(cache: Path, repo: str) -> None:
    """A model of 1 TiB, as far as anybody looks: a file with a hole."""
    size = 2**40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    folder = hub_cache.put(cache, repo, model())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_a_roster_of_what_is_in_the_cache(
    cache: Path, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", env["HOME"])
    hub_cache.put(cache, "org/Atlas-4bit", model(2000))
    hub_cache.put(cache, "org/scribe", model())
    pirate = hub_cache.put(cache, "me/pirate", adapter("org/Atlas-4bit"))
    hub_cache.put(cache, "me/other", adapter("org/gone"))
    told = b'{"model": "org/scribe", "fine_tune_type": "dora"}'
    hub_cache.put(cache, "me/loud", {"adapter_config.json": told, "adapters.safetensors": weights(100)})
    hub_cache.put(cache, "me/prefix", adapter("org/scribe", peft_type="PREFIX_TUNING"))
    done = run("init", at=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "next: mlx-roster serve"
    text = (tmp_path / "roster.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=https://")
    roster = load(tmp_path / "roster.yaml")
    assert list(roster.models) == ["Atlas-4bit", "scribe"]
    assert roster.default_model == "Atlas-4bit"
    atlas = roster.models["Atlas-4bit"]
    assert atlas.source == "org/Atlas-4bit"
    assert list(atlas.aliases) == ["org/Atlas-4bit"]
    assert {name: one.source for name, one in atlas.adapters.items()} == {"pirate": pirate}
    assert f"pirate: ~/{pirate.relative_to(tmp_path)}" in text
    assert list(roster.models["scribe"].adapters) == ["loud"]
    assert "me/other was trained over org/gone, which is not here" in text
    assert "prefix" not in text
    report = run("check", "--json", at=tmp_path, env=env)
    assert report.returncode == 0, report.stdout
    assert json.loads(report.stdout)["together"] == ["Atlas-4bit", "scribe"]


def test_what_does_not_fit_is_there_as_a_comment(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    hub_cache.put(cache, "org/atlas", model())
    huge(cache, "org/huge")
    found = json.loads(run("init", "--json", at=tmp_path, env=env).stdout)
    assert [(one["name"], one["fits"]) for one in found["models"]] == [("atlas", True), ("huge", False)]
    assert found["path"] == "roster.yaml"
    assert found["default_model"] == "atlas"
    text = (tmp_path / "roster.yaml").read_text()
    assert list(load(tmp_path / "roster.yaml").models) == ["atlas"]
    assert re.search(r"^  # 1\.1 TiB, .* more than the budget:\n  # huge:\n  #   source: org/huge$", text, re.MULTILINE)
    assert run("check", at=tmp_path, env=env).returncode == 0


def test_every_example_in_it_is_one(
    cache: Path, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roster whose comments are uncommented, all that are YAML, is still one."""
    hub_cache.put(cache, "org/atlas", model())
    for text in (run("init", "-", at=tmp_path, env=env).stdout, _empty(env, tmp_path)):
        lines = text.splitlines()
        shown = [re.sub(r"^( *)# ?((?: {2})*(?:- |[a-z0-9_-]+:(?: |$)).*)", r"\1\2", line) for line in lines[4:]]
        assert sum(a != b for a, b in zip(lines[4:], shown, strict=True)) > 6
        monkeypatch.setenv("ROSTER_KEY", "sixteen-characters")
        roster = parse("\n".join(shown), name="shown", base=tmp_path)
        assert roster.auth.keys
        assert all(entry.adapters for entry in roster.models.values())


def _empty(env: dict[str, str], at: Path) -> str:
    return run("init", "-", at=at, env=env | {"HF_HUB_CACHE": str(at / "nothing")}).stdout


def test_an_empty_cache_gives_a_skeleton_and_the_next_step(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    done = run("init", "team/r.yaml", at=tmp_path, env=env)
    assert done.returncode == 1
    assert "cannot be written: No such file or directory" in done.stderr
    (tmp_path / "team").mkdir()
    done = run("init", "team", at=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "next: mlx-roster pull" in done.stdout
    roster = load(tmp_path / "team" / "roster.yaml")
    assert roster.discover.hub_cache
    assert not roster.models
    assert run("check", "team/roster.yaml", at=tmp_path, env=env).returncode == 0


def test_nothing_is_overwritten_unasked(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    hub_cache.put(cache, "org/atlas", model())
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    done = run("init", "mine.yaml", at=tmp_path, env=env)
    assert done.returncode == 1
    assert "mine.yaml is there already; --force overwrites it" in done.stderr
    assert path.read_text() == "mine"
    assert run("init", "mine.yaml", "--force", at=tmp_path, env=env).returncode == 0
    assert list(load(path).models) == ["atlas"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hub", "mine.yaml"]


def test_standard_output_is_a_place_like_any_other(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    hub_cache.put(cache, "org/atlas", model())
    assert list(parse(run("init", "-", at=tmp_path, env=env).stdout, name="-", base=tmp_path).models) == ["atlas"]
    assert json.loads(run("init", "-", "--json", at=tmp_path, env=env).stdout)["path"] is None
    assert [file.name for file in tmp_path.iterdir()] == ["hub"]


def test_a_folder_of_the_same_name_does_not_stand_in(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    folder = hub_cache.put(cache, "org/atlas", model())
    (tmp_path / "org" / "atlas").mkdir(parents=True)
    assert run("init", at=tmp_path, env=env).returncode == 0
    assert load(tmp_path / "roster.yaml").models["atlas"].source == folder


def test_names_are_short_where_they_can_be() -> None:
    assert unique(["a/x", "b/y", "c/x"]) == ["a/x", "y", "c/x"]


@pytest.mark.parametrize("text", ["no", "1e3", "a b", "$HOME/x", "a: b", "- a", "~/x", "org/atlas-4bit", "'", "x#y"])
def test_any_text_is_read_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(scalar(text)) == text.replace("$", "$$")


def test_serve_without_a_roster_serves_the_cache(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    folder = hub_cache.put(cache, "org/atlas", {})
    shutil.copytree(directory() / "models" / "atlas", folder, dirs_exist_ok=True)
    with serving("serve", environment=env | {"XDG_CONFIG_HOME": str(tmp_path / "none")}) as server:
        assert "serving the model that is in the Hub cache; mlx-roster init writes a roster" in "\n".join(server.lines)
        assert [one.id for one in server.client().models.list()] == ["org/atlas"]
        reply = server.client().chat.completions.create(
            model="org/atlas", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
        assert reply.choices[0].message.content == "The capital of France is Paris."
        # What was pulled meanwhile is served after a reload.
        scribe = hub_cache.put(cache, "org/scribe", {})
        shutil.copytree(directory() / "models" / "scribe", scribe, dirs_exist_ok=True)
        assert run("reload", "--url", server.url, at=tmp_path, env=env).stdout == "added: org/scribe\n"


def test_serve_takes_the_roster_that_it_finds(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / ".config" / "mlx-roster" / "roster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("models: {a: {source: ./gone}}\nserver: {prt: 1}")
    done = run("serve", at=tmp_path, env=env)
    assert done.returncode == 2
    assert f"{own}:2: server.prt" in done.stderr
    demo_roster(own.parent)
    with serving("serve", "--watch", environment=env) as server:
        assert any(line.endswith(f"the roster is {own}") for line in server.lines), server.lines
        assert "scribe" in [one.id for one in server.client().models.list()]
    (tmp_path / "roster.yaml").write_text("models: {a: {sorce: ./gone}}")
    for command in ("serve", "check"):
        done = run(command, at=tmp_path, env=env)
        assert done.returncode == 2
        assert "roster.yaml:1: models.a.sorce" in done.stderr


def test_serve_with_nothing_to_serve_says_what_to_do(cache: Path, env: dict[str, str], tmp_path: Path) -> None:
    done = run("serve", at=tmp_path, env=env)
    assert done.returncode == 1
    assert "mlx-roster pull" in done.stderr
    assert "mlx-roster demo" in done.stderr
    done = run("check", at=tmp_path, env=env)
    assert done.returncode == 2
    assert "mlx-roster init writes one" in done.stderr
    hub_cache.put(cache, "org/atlas", model())
    done = run("serve", "--watch", at=tmp_path, env=env)
    assert done.returncode == 2
    assert "--watch goes with a roster file" in done.stderr
