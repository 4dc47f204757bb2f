"""A real server in the server's own environment, and a line for each client that says which version was seen."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_roster.workers.blas import preloaded

ROOT = Path(__file__).parents[2]
#: The Python that has mlx-roster installed.
SERVER_PYTHON = os.environ.get("SERVER_PYTHON", str(ROOT / ".venv" / "bin" / "python"))

# Clients look for keys, settings and the Hub in many places: here there are none.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "OPENAI_API_KEY": "no-key",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
}

_seen: dict[str, str] = {}


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the toys' folders are, by the names of their models."""
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="session")
def url(toys: Path) -> Iterator[str]:
    """A server over the demo, a babbler and the scripted models."""
    command = [SERVER_PYTHON, "-m", "tests.clients.served", str(toys)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # Making the toys takes a third of the time with it.
    with subprocess.Popen(command, cwd=ROOT, env=preloaded(os.environ), text=True, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield address
        process.communicate()
    assert process.returncode == 0


@pytest.fixture(autouse=True)
def client_version(request: pytest.FixtureRequest, record_property: pytest.RecordProperty) -> None:
    """Of the distributions that the test's module calls CLIENTS."""
    for name in request.module.CLIENTS:
        _seen.setdefault(name, importlib.metadata.version(name))
        record_property(name, _seen[name])


def saw(name: str, version: str) -> None:
    """A client that is not a distribution of this environment says its version itself."""
    _seen[name] = version


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("clients seen")
    for name, version in sorted(_seen.items()):
        terminalreporter.line(f"{name} {version}")
