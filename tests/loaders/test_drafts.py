"""Draft models: found, fetched, counted and loaded with the model that they draft for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten

from mlx_roster.config import ModelEntry
from mlx_roster.core import DraftSource, Located
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.locate import Locator
from mlx_roster.loaders.models import load
from mlx_roster.loaders.sizes import estimate
from mlx_roster.loaders.source import draft_folders
from tests.engine import tiny
from tests.loaders.fake_hub import FakeHub
from tests.loaders.hub_cache import FILES, REPO, WANTED, weights
from tests.looking import until

OTHER = "org/small"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a smaller one with the same vocabulary."""
    shelf = tmp_path_factory.mktemp("shelf")
    return tiny.write_model(shelf / "large"), tiny.write_model(shelf / "small", "qwen3", num_hidden_layers=1)


def entry(source: Path | str, *drafts: Path | str) -> ModelEntry:
    return ModelEntry.model_validate({"source": str(source), "draft": [{"model": str(draft)} for draft in drafts]})


def locate(entry: ModelEntry) -> Located:
    async def one() -> Located:
        return await Locator(0).locate("atlas", entry)

    return asyncio.run(one())


def failure(entry: ModelEntry) -> str:
    with pytest.raises(LoadFailed) as failed:
        locate(entry)
    return failed.value.message


def test_drafts_are_located_and_counted(folders: tuple[Path, Path]) -> None:
    large, small = folders
    located, without = locate(entry(large, small)), locate(entry(large))
    assert located.drafts == (DraftSource("small", str(small), 3),)
    # Of one sequence: only one that is alone is drafted for. Two layers keep 128 bytes of each token, one half of it.
    assert located.kv - without.kv == 512 * 128
    assert located.estimate - without.estimate == estimate(small, entry(small), 0).weights + located.kv - without.kv


def test_of_several_drafts_only_one_is_used_at_a_time(folders: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = folders
    shutil.copytree(small, tmp_path / "again")
    both, one = locate(entry(large, small, tmp_path / "again")), locate(entry(large, small))
    assert both.kv == one.kv
    assert both.estimate - one.estimate == estimate(small, entry(small), 0).weights


def test_a_draft_that_is_not_there_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert failure(entry(folders[0], tmp_path / "gone")) == (
        "draft model gone of atlas cannot be loaded: its folder does not exist"
    )


def test_drafts_are_downloaded_after_the_model(hub: FakeHub) -> None:
    small = {"config.json": b"{}", "model.safetensors": weights(100_000)}
    hub.repos[OTHER] = dict(small)
    hub.gates["model.safetensors"] = 50_000
    first, second = sum(len(FILES[name]) for name in WANTED), sum(map(len, small.values()))
    seen: list[tuple[int, int]] = []

    async def run() -> Located:
        locator = Locator(0)

        def look() -> None:
            seen.extend(locator.progress().values())

        job = asyncio.create_task(locator.locate("atlas", entry(REPO, OTHER)))
        await until(lambda: job.done() or seen[-1:] >= [(first + 50_000, 0)], look)
        hub.open_gate("model.safetensors")
        await until(job.done, look)
        assert locator.progress() == {}
        return await job

    model = entry(REPO, OTHER)
    assert draft_folders(model) == [None]
    located = asyncio.run(run())
    assert [Path(draft.path) for draft in located.drafts] == draft_folders(model)
    # It only grows: who looks whether there is any progress would not see that of a second, smaller repo.
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} <= {first, first + second}
    assert seen[-1][1] == first + second


def test_drafts_are_loaded_and_count_as_progress(folders: tuple[Path, Path]) -> None:
    large, small = folders
    source = msgspec.structs.replace(tiny.source(large), drafts=(DraftSource("small", str(small), 5),))
    seen: list[tuple[int, int]] = []
    loaded = load(source, lambda done, total: seen.append((done, total)), portion=1024)
    draft = loaded.drafts["small"]
    assert (draft.tokens, draft.context, draft.vocabulary) == (5, 512, 321)
    assert draft.model(mx.array([[1, 2]])).shape == (1, 2, 321)
    size = sum(array.nbytes for model in (loaded.model, draft.model) for _, array in tree_flatten(model.parameters()))
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)


def refusal(large: Path, small: Path) -> str:
    source = msgspec.structs.replace(tiny.source(large), drafts=(DraftSource("small", str(small)),))
    with pytest.raises(LoadFailed) as refused:
        load(source, lambda done, total: None)
    return refused.value.message


def test_a_draft_with_another_vocabulary_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = folders
    other = shutil.copytree(small, tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace("<tool>", "<loot>"))
    assert refusal(large, other) == ("model 'tiny' cannot be drafted for: model 'small': its vocabulary is another one")


def test_a_broken_draft_is_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = folders
    broken = shutil.copytree(small, tmp_path / "broken")
    (broken / "config.json").unlink()
    assert refusal(large, broken) == "model 'tiny' cannot be drafted for: model 'small': config.json is missing"
