"""What is a model's folder, and what the local Hub cache has. Nothing here touches a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config import ModelEntry
from mlx_roster.config.load import parse
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.source import cached, check_folder, globs
from tests.loaders import hub_cache
from tests.loaders.hub_cache import FILES, REPO, WANTED, weights


def entry(source: Path | str) -> ModelEntry:
    return ModelEntry.model_validate({"source": source})


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(FILES.get(name, weights(1)))
    return folder


def test_a_folder_that_is_a_model(tmp_path: Path) -> None:
    check_folder(folder_with(tmp_path / "atlas", "config.json", "model.safetensors"))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "there is no config.json"),
        (["config.json"], "there is no model*.safetensors"),
        (["config.json", "adapters.safetensors"], "there is no model*.safetensors"),
        (["model.safetensors"], "there is no config.json"),
        (
            ["config.json", "model-1.safetensors", "model.safetensors.index.json"],
            "1 of 2 weight files are missing, model-2.safetensors among them",
        ),
    ],
)
def test_a_folder_that_is_no_model(names: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed) as refused:
        check_folder(folder_with(tmp_path / "secret", *names))
    assert refused.value.message == problem


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "secret", tmp_path / "file"):
        with pytest.raises(LoadFailed, match=r"^its folder does not exist$"):
            check_folder(path)


def test_code_is_needed_only_where_it_may_be_run() -> None:
    assert "*.py" not in globs(code=False)
    assert set(globs(code=True)) == {*globs(code=False), "*.py"}


def test_what_the_cache_has(cache: Path) -> None:
    assert cached(REPO, None) is None
    folder = hub_cache.put(cache, REPO, {name: FILES[name] for name in WANTED}, tag="v2")
    assert cached(REPO, None) == cached(REPO, "v2") == cached(REPO, folder.name) == folder
    assert cached(REPO, "v3") is None
    assert cached("org/other", None) is None


def test_the_rest_of_a_download_that_broke_off_is_not_a_model(cache: Path) -> None:
    folder = hub_cache.put(cache, REPO, {name: FILES[name] for name in WANTED})
    (folder / "model-2.safetensors").unlink()
    assert cached(REPO, None) is None


def test_a_cache_that_is_a_file(cache: Path) -> None:
    cache.touch()
    assert cached(REPO, None) is None


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/sources.md").read_text().partition("```yaml")[2].partition("```")[0]
    assert set(parse(text, name="docs/sources.md", base=tmp_path).models) == {"atlas", "qwen", "scribe"}
