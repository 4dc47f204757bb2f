"""Models that are in the local Hub cache already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlx_lm import utils

from mlx_roster.config import Roster
from mlx_roster.config.load import parse
from mlx_roster.loaders import discover as discovering
from mlx_roster.loaders.discover import discover
from tests.loaders import hub_cache
from tests.loaders.fake_hub import Files
from tests.loaders.hub_cache import weights


def roster(models: str = "other: {source: ./other}") -> Roster:
    return parse(f"models: {{{models}}}", name="roster.yaml", base=Path("/nowhere"))


def files(**config: object) -> Files:
    return {
        "config.json": json.dumps({"model_type": "llama"} | config).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": weights(100),
    }


def test_every_model_of_the_cache_is_found_by_its_repo_id(cache: Path) -> None:
    hub_cache.put(cache, "org/atlas", files())
    hub_cache.put(cache, "org/remapped", files(model_type="mistral"))
    hub_cache.put(
        cache, "org/by-architecture", files(model_type="bailing_hybrid", architectures=["BailingMoeV3ForCausalLM"])
    )
    found = discover(roster())
    assert list(found) == ["org/atlas", "org/by-architecture", "org/remapped"]
    assert found["org/atlas"].source == "org/atlas"
    assert found["org/atlas"].revision is None
    assert not found["org/atlas"].trust_remote_code


def test_what_the_roster_lists_is_left_to_it(cache: Path) -> None:
    for repo in ("org/a", "org/b", "org/c", "org/d"):
        hub_cache.put(cache, repo, files())
    listed = roster(
        "mine: {source: org/a, revision: v2}, other: {source: ./other, aliases: [org/b]}, org/c: {source: ./c}"
    )
    assert list(discover(listed)) == ["org/d"]


def test_what_is_no_whole_model_is_passed_over(cache: Path, tmp_path: Path) -> None:
    assert discover(roster()) == {}
    hub_cache.put(cache, "org/unknown", files(model_type="teapot"))
    hub_cache.put(cache, "org/no-kind", files(model_type=None))
    hub_cache.put(cache, "org/no-model", files(model_type="cache"))
    hub_cache.put(cache, "org/own-code", files(model_file="own.py"))
    hub_cache.put(cache, "org/not-json", files() | {"config.json": b"{"})
    hub_cache.put(cache, "org/a-list", files() | {"config.json": b"[]"})
    hub_cache.put(cache, "org/cut", files() | {"model.safetensors": weights(100)[:-1]})
    hub_cache.put(cache, "org/mute", {name: content for name, content in files().items() if name != "tokenizer.json"})
    hub_cache.put(cache, "org/weightless", {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"})
    (cache / "models--org--empty").mkdir()
    (cache / "models--odd").mkdir()
    (cache / "datasets--org--words").mkdir()
    assert discover(roster()) == {}


def test_a_folder_of_that_name_does_not_stand_in_for_the_repo(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache.put(cache, "org/atlas", files())
    (tmp_path / "org" / "atlas").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert discover(roster())["org/atlas"].source == "org/atlas"


def test_kinds_of_models_are_those_of_mlx_lm() -> None:
    assert discovering.remappings() == (utils.MODEL_REMAPPING, utils.MODEL_ARCHITECTURE_REMAPPING)
    assert {"llama", "qwen3", "solar_open", "lfm2-vl", "Klear"} <= discovering.kinds()
    assert not {"base", "cache", "__init__", "switch_layers"} & discovering.kinds()


def test_mlx_is_not_imported() -> None:
    code = (
        "import sys; from mlx_roster.loaders import discover; discover.kinds(); discover.remappings(); "
        "assert not {'mlx', 'mlx_lm', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
