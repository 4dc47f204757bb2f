from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from mlx_roster.config import ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.source import cached, check_folder, is_local, resolve
from tests.loaders.fake_hub import FakeHub, commit, fake_hub

REPO = "org/atlas"

#: An address that nothing listens on.
NOBODY = "http://127.0.0.1:1"


def weights(size: int) -> bytes:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "chat_template.jinja": b"{{ messages }}",
    "model-1.safetensors": weights(30_000),
    "model-2.safetensors": weights(20_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    # None of these is for us.
    "modeling_atlas.py": b"raise SystemExit",
    "consolidated.safetensors": weights(10_000),
    "pytorch_model.bin": b"x",
    "README.md": b"x",
}
WANTED = {name for name in FILES if name.endswith((".json", ".jinja")) or name.startswith("model-")}


def entry(source: Path | str = REPO, revision: str | None = None) -> ModelEntry:
    return ModelEntry.model_validate({"source": source, "revision": revision})


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT in the environment does for a process that has yet to import the Hub's client."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with fake_hub() as hub:
        use_hub(hub.url, monkeypatch)
        hub.repos[REPO] = dict(FILES)
        yield hub


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(FILES.get(name, weights(1)))
    return folder


def failure(model: ModelEntry) -> str:
    with pytest.raises(LoadFailed) as failed:
        resolve("atlas", model, ignore)
    return failed.value.message


def test_which_sources_are_local(tmp_path: Path) -> None:
    assert is_local(entry(tmp_path))
    assert is_local(entry("./missing"))
    assert not is_local(entry())


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "atlas", "config.json", "model.safetensors")
    assert resolve("atlas", entry(folder), ignore) == folder


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
    folder = folder_with(tmp_path / "secret", *names)
    assert failure(entry(folder)) == f"model atlas cannot be loaded: {problem}"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert failure(entry(tmp_path / "secret")) == "model atlas cannot be loaded: its folder does not exist"
    (tmp_path / "file").touch()
    with pytest.raises(LoadFailed, match=r"^its folder does not exist$"):
        check_folder(tmp_path / "file")


def test_a_repo_is_downloaded_once_and_only_what_is_needed_of_it(hub: FakeHub) -> None:
    assert cached(REPO, None) is None
    assert hub.seen == []
    folder = resolve("atlas", entry(), ignore)
    assert {path.name for path in folder.iterdir()} == WANTED == hub.downloaded
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    hub.seen.clear()
    assert resolve("atlas", entry(), ignore) == folder == cached(REPO, None)
    assert hub.seen == []


def test_a_revision(hub: FakeHub) -> None:
    folder = resolve("atlas", entry(revision=commit(REPO)), ignore)
    assert folder.name == commit(REPO)
    assert cached(REPO, commit(REPO)) == folder
    assert cached(REPO, "v2") is None


def test_progress_is_in_bytes_and_only_grows(hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    resolve("atlas", entry(), lambda done, total: seen.append((done, total)))
    total = sum(len(FILES[name]) for name in WANTED)
    assert {of for _, of in seen} == {total}
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_what_progress_raises_ends_the_download(hub: FakeHub) -> None:
    class NobodyWaits(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise NobodyWaits

    with pytest.raises(NobodyWaits):
        resolve("atlas", entry(), stop)
    assert cached(REPO, None) is None


def test_a_download_that_broke_off_is_taken_up_again(hub: FakeHub) -> None:
    resolve("atlas", entry(), ignore)
    whole = cached(REPO, None)
    assert whole is not None
    (whole / "model-2.safetensors").unlink()
    assert cached(REPO, None) is None
    hub.seen.clear()
    assert resolve("atlas", entry(), ignore) == whole
    assert hub.downloaded <= {"model-2.safetensors"}
    assert (whole / "model-2.safetensors").read_bytes() == FILES["model-2.safetensors"]


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "the Hub has no org/atlas, or it is private and HF_TOKEN does not open it"),
        (401, "RepoNotFound", "the Hub has no org/atlas, or it is private and HF_TOKEN does not open it"),
        (403, "GatedRepo", "org/atlas is gated; accept its terms on the Hub and set HF_TOKEN"),
        (500, "", "the Hub answered 500 for org/atlas"),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, reason: str, hub: FakeHub) -> None:
    hub.failures[REPO] = status, code
    assert failure(entry()) == f"model atlas cannot be downloaded: {reason}"


def test_a_revision_that_is_not_there(hub: FakeHub) -> None:
    assert failure(entry(revision="v9")) == "model atlas cannot be downloaded: org/atlas has no revision v9"


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(NOBODY, monkeypatch)
    assert failure(entry()) == (
        "model atlas cannot be downloaded: org/atlas is not in the local cache, "
        "and the Hub cannot be reached or broke off"
    )


def test_offline_by_choice(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "is not in the local cache, and the Hub cannot be reached" in failure(entry())


def test_what_is_cached_needs_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("atlas", entry(), ignore)
    use_hub(NOBODY, monkeypatch)
    assert resolve("atlas", entry(), ignore) == folder


def test_a_repo_without_weights(hub: FakeHub) -> None:
    del hub.repos[REPO]["model-2.safetensors"]
    assert failure(entry()) == (
        "model atlas cannot be loaded: 1 of 2 weight files are missing, model-2.safetensors among them"
    )


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    reason = failure(entry())
    assert reason.startswith("model atlas cannot be downloaded: ")
    assert str(tmp_path) not in reason
