"""A server of its own for each test, over the demo's models and one that never ends a sentence by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import babbler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    models = [f"  busy: {{source: {babbler(tmp_path / 'busy')}}}"]
    with serving("serve", str(demo_roster(tmp_path, models=models))) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client
