"""`llm`, as a command with a roster's models in its settings, and as a library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llm
import pytest
from pydantic import BaseModel

from tests.clients.said import COUNTRY

CLIENTS = ["llm"]

QUESTION = "What is the capital of France?"


class Country(BaseModel):
    name: str
    capital: str


@pytest.fixture(autouse=True)
def settings(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    entries = [
        {"model_id": f"my-{name}", "model_name": name, "api_base": url, "supports_schema": True, "supports_tools": True}
        for name in ("atlas", "atlas:pirate", "weather", "traveller", "geographer", "nobody")
    ]
    entries.append({"model_id": "my-text", "model_name": "geographer", "api_base": url, "completion": True})
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(entries))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "llm"), *arguments]
    return subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_prompt(flags: list[str]) -> None:
    done = run("-m", "my-atlas:pirate", "-o", "temperature", "0", *flags, QUESTION)
    assert done.stdout == "Arr! The capital of France be Paris.\n", done.stderr


def test_conversation_goes_on() -> None:
    conversation = llm.get_model("my-weather").conversation()
    assert "get_weather" in conversation.prompt("How is the weather?").text()
    assert conversation.prompt("sunny").text() == "It is sunny in Paris."


def test_text_completion() -> None:
    assert json.loads(llm.get_model("my-text").prompt("Which?").text()) == COUNTRY


def test_tools() -> None:
    asked = []

    def get_weather(city: str, days: int) -> str:
        """The weather of some days."""
        asked.append((city, days))
        return "sunny"

    chain = llm.get_model("my-traveller").chain("How is the weather?", tools=[get_weather])
    assert chain.text().endswith("Sunny in Paris, rain in Rome.")
    assert asked == [("Paris", 2), ("Rome", 1)]


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_schema(flags: list[str]) -> None:
    done = run("-m", "my-geographer", "--schema", json.dumps(Country.model_json_schema()), *flags, QUESTION)
    assert json.loads(done.stdout) == COUNTRY, done.stderr


def test_error() -> None:
    done = run("-m", "my-nobody", QUESTION)
    assert done.returncode != 0
    assert "no model 'nobody'" in done.stderr
