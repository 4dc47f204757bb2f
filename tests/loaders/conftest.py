from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loaders import hub_cache
from tests.loaders.fake_hub import FakeHub, fake_hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the local Hub cache will be."""
    cache = tmp_path / "hub"
    hub_cache.use(cache, monkeypatch)
    return cache


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that has one repo."""
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos[hub_cache.REPO] = dict(hub_cache.FILES)
        yield hub
