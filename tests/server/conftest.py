"""Servers for the tests of the HTTP side."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.server.harness import Running, running
from tests.server.keys import KEYS


@pytest.fixture
def server() -> Iterator[Running]:
    """A server of one's own, whose history starts empty."""
    with running() as server:
        yield server
        server.idle()


@pytest.fixture
def client(server: Running) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Running]:
    """A server that many tests use: for what leaves no trace in it."""
    with running() as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def shared(shared_server: Running) -> Iterator[httpx2.Client]:
    """A client of it."""
    with shared_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    """A server with `KEYS` that many tests use."""
    with running(auth={"keys": KEYS}) as server:
        yield server
        server.idle()
