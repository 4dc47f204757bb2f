"""`aider`, in an environment of its own: a real edit of a real file in a real git repository."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT, saw
from tests.clients.said import COMMIT, GREETING, HELLO

CLIENTS: list[str] = []

AIDER = ROOT / ".venv-aider" / "bin" / "aider"

LIMITS = {"max_input_tokens": 100_000, "max_output_tokens": 4_000, "litellm_provider": "openai", "mode": "chat"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty) -> Path:
    """An empty one, where neither aider nor git finds any settings but ours."""
    if sys.version_info >= (3, 13) and not AIDER.exists():
        pytest.skip("there is no aider for this Python")
    monkeypatch.setenv("HOME", str(tmp_path))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Someone")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "someone@example.com")
    # Else it would fetch what it knows of models from the network.
    known = tmp_path / ".aider" / "caches" / "model_prices_and_context_window.json"
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps({f"openai/{model}": LIMITS for model in ("whole", "diff", "committer")}))
    (aider,) = importlib.metadata.distributions(
        name="aider-chat", path=map(str, AIDER.parents[1].glob("lib/*/site-packages"))
    )
    saw("aider-chat", aider.version)
    record_property("aider-chat", aider.version)
    return tmp_path


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(home: Path) -> Path:
    """With one file, which is to be changed."""
    repository = home / "repository"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "hello.py").write_text(HELLO)
    git(repository, "add", "hello.py")
    git(repository, "commit", "--quiet", "--message", "A greeting")
    return repository


def edit(repository: Path, *flags: str) -> None:
    """Have aider change the file, as the scripted models do it, and commit that."""
    command = [str(AIDER), *flags, "--yes-always", "--no-gitignore", "--no-pretty", "--no-check-update"]
    command += ["--analytics-disable", "--no-show-release-notes", "--message", "Greet by name.", "hello.py"]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"token limit|litellm\.\w*Error", said), said
    assert "Applied edit to hello.py" in said
    assert (repository / "hello.py").read_text() == GREETING, said
    assert git(repository, "log", "-1", "--format=%s").strip() == COMMIT, said
    assert git(repository, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize(("model", "form", "flags"), [("whole", "whole", []), ("diff", "diff", ["--no-stream"])])
def test_edits_a_file_and_commits_it(url: str, repository: Path, model: str, form: str, flags: list[str]) -> None:
    models = ["--model", f"openai/{model}", "--weak-model", "openai/committer", "--edit-format", form]
    address = ["--openai-api-base", url, "--openai-api-key", "no-key"]
    edit(repository, *models, *address, "--no-show-model-warnings", *flags)


def test_the_settings_in_the_examples(url: str, repository: Path) -> None:
    # Only where the server is, and the models that know this one edit, are others here.
    names = {"openai/coder": "openai/diff", "openai/small": "openai/committer", "http://127.0.0.1:8080/v1": url}
    for name in ("aider.conf.yml", "aider.model.metadata.json"):
        text = (ROOT / "examples" / "coding" / name).read_text()
        for there, here in names.items():
            text = text.replace(there, here)
        (repository / f".{name}").write_text(text)
    edit(repository)
