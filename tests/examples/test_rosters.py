"""The rosters in examples/ do what their comments say, with the demo's models in place of theirs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from mlx_roster.demo import directory
from tests.serving import PATIENCE, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
ADAPTERS = ("pirate", "french")


def read(name: str) -> dict[str, Any]:
    """The example, small enough for any machine: atlas for each model, and its adapters in turn for each adapter."""
    roster: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text().replace("${ROSTER_PORT:-8080}", "0"))
    demo = directory()
    roster["memory"]["budget"] = "75%"
    for entry in roster["models"].values():
        entry["source"] = str(demo / "models" / "atlas")
        entry.pop("revision", None)
        # Its heads are too small for that group.
        entry.pop("kv", None)
        for number, (adapter, said) in enumerate(entry.get("adapters", {}).items()):
            source = str(demo / "adapters" / ADAPTERS[number % 2])
            entry["adapters"][adapter] = {**said, "source": source} if isinstance(said, dict) else source
    return roster


def written(folder: Path, roster: dict[str, Any]) -> str:
    path = folder / "roster.yaml"
    path.write_text(json.dumps(roster))
    return str(path)


def ask(url: str, model: str, key: str = "no-key") -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    body |= {"temperature": 0, "max_tokens": 50}
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=PATIENCE, trust_env=False)


def said(url: str, model: str, key: str = "no-key") -> str:
    answer = ask(url, model, key)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    roster = copy.deepcopy(read("team.yaml"))
    # Bound as the example says it, keys and all; only who has them is known here.
    for key in roster["auth"]["keys"]:
        key["key_sha256"] = hashlib.sha256(f"key-of-{key['name']}".encode()).hexdigest()
    with serving("serve", written(tmp_path_factory.mktemp("team"), roster)) as server:
        yield server.url.replace("0.0.0.0", "127.0.0.1")


class TestTeam:
    def test_a_person_may_use_everything(self, team: str) -> None:
        for model in ("gpt-4o", "writer", "writer:support", "changelog"):
            assert "Paris" in said(team, model, "key-of-anna")

    def test_the_bot_has_one_adapter_and_sees_no_more(self, team: str) -> None:
        assert "Paris" in said(team, "writer:support", "key-of-support-bot")
        assert ask(team, "writer:legal", "key-of-support-bot").status_code == 403
        assert ask(team, "coder", "key-of-support-bot").status_code == 403
        headers = {"authorization": "Bearer key-of-support-bot"}
        listed = httpx2.get(f"{team}/models", headers=headers, timeout=PATIENCE, trust_env=False).json()["data"]
        assert [entry["id"] for entry in listed] == ["writer:support"]

    def test_only_operators_operate(self, team: str) -> None:
        status = team.removesuffix("/v1") + "/admin/status"
        codes = {}
        for name in ("anna", "support-bot", "ops"):
            headers = {"authorization": f"Bearer key-of-{name}"}
            codes[name] = httpx2.get(status, headers=headers, timeout=PATIENCE, trust_env=False).status_code
        assert codes == {"anna": 403, "support-bot": 403, "ops": 200}

    def test_a_stranger_gets_nothing(self, team: str) -> None:
        assert ask(team, "coder").status_code == 401


def test_agents_find_two_models_loaded(tmp_path: Path) -> None:
    with serving("serve", written(tmp_path, read("coding.yaml"))) as server:
        server.logged(r"loaded.*coder|coder.*loaded")
        server.logged(r"loaded.*small|small.*loaded")
        assert "Paris" in said(server.url, "coder")
        assert "Paris" in said(server.url, "small")


def test_many_adapters_of_one_base(tmp_path: Path) -> None:
    with serving("serve", written(tmp_path, read("adapters.yaml"))) as server:
        texts = {name: said(server.url, name) for name in ("base", "base:acme", "base:globex", "umbrella-bot")}
        assert texts["base:acme"].startswith("Arr!")
        assert texts["base:globex"] == "La capitale de la France est Paris."
        # Its alias means the fourth adapter, which is the second one's twin here.
        assert texts["umbrella-bot"] == texts["base:globex"]
        assert texts["base"] == "The capital of France is Paris."
        # It was loaded once, whatever adapters were asked for.
        models = httpx2.get(server.url.removesuffix("/v1") + "/admin/status", timeout=PATIENCE, trust_env=False).json()[
            "models"
        ]
        assert [(model["id"], model["state"]) for model in models] == [("base", "ready")]
