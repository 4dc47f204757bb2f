"""Where models come from: real servers, real downloads, and a real HTTP server in the Hub's place."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from mlx_roster.demo import directory
from tests.e2e.test_faults import asking, body
from tests.loaders import hub_cache
from tests.loaders.fake_hub import FakeHub, fake_hub
from tests.serving import PATIENCE, Server, serving

WEIGHTS = "model.safetensors"

#: As much of atlas's weights as is let through before something happens.
PART = 1_000_000

MODELS = f"""
models:
  atlas: {{source: demo/atlas}}
  again: {{source: demo/atlas, revision: main}}
  scribe: {{source: {directory()}/models/scribe}}
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with atlas, for servers with an empty cache."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add("demo/atlas", directory() / "models" / "atlas")
        yield hub


def roster(folder: Path, text: str = MODELS) -> str:
    path = folder / "roster.yaml"
    path.write_text(text)
    return str(path)


def answer(server: Server, model: str, **more: object) -> httpx.Response:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        return client.post("/chat/completions", json=body(model, tokens=5, stream=False) | more)


def fetchers(server: Server) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(server.process.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE and "mlx_roster.loaders.fetching" in child.cmdline()
    ]


def arrived(folder: Path) -> int:
    """Bytes of the file that is under way."""
    return sum(file.stat().st_size for file in folder.rglob("*.incomplete"))


def test_two_requests_for_a_hub_model_make_one_download(hub: FakeHub, tmp_path: Path) -> None:
    with serving("serve", roster(tmp_path)) as server:
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(answer(server, "atlas"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one.status_code for one in answers] == [200, 200], answers[0].text
        assert [name for name, _ in hub.begun].count(WEIGHTS) == 1
        hub.seen.clear()
        # What is in the cache now is taken from there.
        assert answer(server, "again").status_code == 200
        assert hub.seen == []


def test_a_client_that_hangs_up_ends_the_download_and_the_next_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    hub.gates[WEIGHTS] = PART
    with serving("serve", roster(tmp_path)) as server:
        with asking(server, body("atlas")):
            hub.wait_held(WEIGHTS)
            while arrived(tmp_path) < PART:
                pass
            assert answer(server, "scribe").status_code == 200  # another model answers meanwhile
            assert len(fetchers(server)) == 1
        while fetchers(server):
            pass
        hub.open_gate(WEIGHTS)
        hub.begun.clear()
        assert answer(server, "atlas").status_code == 200
        assert (WEIGHTS, PART) in hub.begun
        assert (WEIGHTS, 0) not in hub.begun


def test_a_hub_that_breaks_off_in_mid_file_is_502_and_others_go_on(hub: FakeHub, tmp_path: Path) -> None:
    hub.ends[WEIGHTS] = PART
    with serving("serve", roster(tmp_path)) as server:
        refused = answer(server, "atlas")
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "load_failed")
        assert "the Hub cannot be reached or broke off" in refused.json()["error"]["message"]
        assert str(tmp_path) not in refused.text
        assert answer(server, "scribe").status_code == 200


def test_shutdown_while_downloading(hub: FakeHub, tmp_path: Path) -> None:
    hub.gates[WEIGHTS] = PART
    text = MODELS.replace("{source: demo/atlas}", "{source: demo/atlas, preload: true}")
    with serving("serve", roster(tmp_path, text)) as server:
        hub.wait_held(WEIGHTS)
        (fetcher,) = fetchers(server)
        assert server.stop() == 0
        assert not fetcher.is_running()


def test_offline_says_so_and_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    with serving("serve", roster(tmp_path, "offline: true\n" + MODELS)) as server:
        refused = answer(server, "atlas")
        assert refused.status_code == 502
        assert "demo/atlas is not in the local cache, and the roster says offline" in refused.json()["error"]["message"]
    assert hub.seen == []


def test_what_is_in_the_hub_cache_is_served_where_the_roster_says_so(hub: FakeHub, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in (directory() / "models" / "scribe").iterdir()}
    hub_cache.put(tmp_path / "home" / "hub", "demo/scribe", files)
    with serving("serve", roster(tmp_path, "discover: {hub_cache: true}\n" + MODELS)) as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            listed = {model["id"] for model in client.get("/models").json()["data"]}
        assert "demo/scribe" in listed
        assert "demo/atlas" not in listed
        assert answer(server, "demo/scribe").json()["model"] == "demo/scribe"
    assert hub.seen == []


def test_unlisted_models_and_adapters(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models/atlas", "adapters/pirate"):
        shutil.copytree(directory() / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    hub.add("demo/other", directory() / "models" / "atlas")
    rules = "unlisted: {paths: true, hub: ['demo/*']}\n"
    with serving("serve", roster(tmp_path, rules + MODELS)) as server:
        assert answer(server, "demo/other").json()["model"] == "demo/other"
        assert answer(server, "demo/atlas").json()["model"] == "atlas"  # which is listed
        adapted = answer(server, "./models/atlas", adapters="./adapters/pirate")
        assert adapted.json()["model"] == "models/atlas:adapters/pirate"
        assert answer(server, "models/atlas").status_code == 200
        for model in ("../models/atlas", "other/atlas", "models/atlas/..", str(tmp_path / "models" / "atlas")):
            assert answer(server, model).json()["error"]["code"] == "model_not_found"
        refused = answer(server, "atlas", adapters="../pirate")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "adapter_not_found")
