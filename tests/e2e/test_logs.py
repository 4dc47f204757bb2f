"""The whole log of a real server and its workers, read as a machine does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving

DOCS = Path(__file__).parents[2] / "docs" / "logs.md"
SECRET = "Xyzzy"


def records(server: Server) -> list[dict[str, Any]]:
    """All lines so far. Each is one object."""
    return [json.loads(line) for line in server.lines]


def found(server: Server, **about: Any) -> dict[str, Any]:
    """The first record with these fields: it is waited for."""
    server.logged("^" + "".join(f"(?=.*{_pattern(name, value)})" for name, value in about.items()))
    return next(one for one in records(server) if about.items() <= one.items())


def _pattern(name: str, value: object) -> str:
    return re.escape(f"{json.dumps(name)}: {json.dumps(value)}")


def ask(server: Server, name: str, path: str = "completions", **body: Any) -> httpx.Response:
    """One request, which says its own id."""
    return httpx.post(f"{server.url}/{path}", json=body, headers={"x-request-id": name}, timeout=PATIENCE)


def test_every_line_is_json_from_the_first_to_the_last_and_says_what_happened(tmp_path: Path) -> None:
    roster = demo_roster(tmp_path, budget="20MiB")
    with serving("serve", str(roster), log=None) as server:
        ask(server, "one", model="atlas:pirate", prompt="hi", max_tokens=3, temperature=0).raise_for_status()
        ask(server, "two", model="scribe", prompt="hi", max_tokens=3, stream=True).raise_for_status()
        served = found(server, event="request", request_id="two")
        assert served.items() >= {"model": "scribe", "stream": True, "completion_tokens": 3, "finish": "length"}.items()
        assert served["prompt_tokens"] > 0
        found(server, event="loaded", model="scribe")
        server.stop()
    said = records(server)
    assert {"ready", "load", "loaded", "request"} <= {one.get("event") for one in said}
    assert all({"time", "level", "logger", "message"} <= one.keys() for one in said)
    loaded = next(one for one in said if one.get("event") == "loaded")
    assert isinstance(loaded["measured"], int)
    assert loaded["model"] == "atlas"
    _check_examples(tmp_path / "roster.log", server.lines)


def _check_examples(log: Path, lines: list[str]) -> None:
    """What docs/logs.md does with jq works on such a log, and finds something unless there is nothing."""
    if shutil.which("jq") is None:
        return
    log.write_text("\n".join(lines) + "\n")
    block = DOCS.read_text().partition("## Reading them")[2].partition("```console")[2].partition("```")[0]
    commands = re.findall(r"^\$ (jq .*?roster\.log)$", block, re.MULTILINE | re.DOTALL)
    assert len(commands) == 6
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=log.parent, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command
        if any(word in command for word in ("completion_tokens", "ttft_ms", ".level")):
            assert done.stdout, command


def test_a_request_id_is_in_the_lines_of_the_worker(tmp_path: Path) -> None:
    roster = demo_roster(tmp_path)
    with serving("serve", str(roster), log="json") as server:
        refused = ask(server, "mine alone", model="atlas", prompt="word " * 5000)
        assert refused.status_code == 400
        line = found(server, request_id="mine alone", event="rejected")
        assert line["message"].startswith(f"atlas[{line['pid']}]: ")
        assert line.items() >= {"level": "DEBUG", "model": "atlas", "code": refused.json()["error"]["code"]}.items()
        assert line["logger"].startswith("mlx_roster.engine")
        server.stop()


def test_a_workers_warning_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = demo_roster(tmp_path)
    source = re.search(r"source: (\S+?/scribe)", roster.read_text())
    assert source is not None
    copy = tmp_path / "scribe"
    shutil.copytree(source[1], copy)
    (copy / "generation_config.json").write_text("no JSON")
    roster.write_text(roster.read_text().replace(source[1], str(copy)))
    with serving("serve", str(roster), log="json") as server:
        ask(server, "one", model="scribe", prompt="hi", max_tokens=1).raise_for_status()
        line = found(server, level="WARNING", model="scribe")
        assert "generation_config.json" in line["message"]
        assert line["pid"]
        server.stop()


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": f"{SECRET} " * 5000}),
    ("completions", {"prompt": SECRET, "stop": [SECRET], "echo": True, "logprobs": 2}),
    ("completions", {"prompt": SECRET, "stream": True, "user": SECRET, "metadata": {SECRET: SECRET}}),
    ("completions", {"prompt": SECRET, "model": SECRET}),
    ("completions", {"prompt": SECRET, "adapters": f"{SECRET}/../x"}),
    ("completions", {"prompt": [1, 2, 10**9]}),
    ("chat/completions", {"messages": [{"role": "user", "content": SECRET}], "chat_template_kwargs": {SECRET: SECRET}}),
    ("chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
    ("chat/completions", {"messages": [{"role": "user", "content": SECRET}], "role_mapping": {SECRET: SECRET}}),
    (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": SECRET}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": SECRET, "schema": {"type": "string", "pattern": f"({SECRET}"}},
            },
        },
    ),
    (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": SECRET}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": SECRET, "schema": {"$ref": f"#/{SECRET}", SECRET: {"type": SECRET}}},
            },
        },
    ),
    (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": SECRET}],
            "tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}],
            "tool_choice": "required",
        },
    ),
]


def test_nothing_that_a_client_says_is_in_the_log(tmp_path: Path) -> None:
    with serving("serve", str(demo_roster(tmp_path)), log="json") as server:
        for number, (path, body) in enumerate(REQUESTS):
            ask(server, f"number-{number}", path, **{"model": "atlas", "max_tokens": 8, **body})
        for number in range(len(REQUESTS)):
            found(server, event="request", request_id=f"number-{number}")
        server.stop()
    assert {one["status"] for one in records(server) if one.get("event") == "request"} >= {200, 400, 404}
    assert SECRET not in "\n".join(server.lines)


def test_a_reload_changes_what_is_logged_and_how(tmp_path: Path) -> None:
    roster = demo_roster(tmp_path)
    before = roster.read_text()

    def reload(logs: str, pattern: str) -> None:
        roster.write_text(before + f"logs: {logs}\n")
        assert httpx.post(f"{server.url.removesuffix('/v1')}/admin/reload", timeout=PATIENCE).status_code == 200
        server.logged(pattern)

    with serving("serve", str(roster), log=None) as server:
        ask(server, "one", model="atlas", prompt=f"{SECRET}-one", max_tokens=1).raise_for_status()
        reload("{prompts: true}", '"event": "reload"')
        ask(server, "two", model="atlas", prompt=f"{SECRET}-two", max_tokens=1).raise_for_status()
        assert f"{SECRET}-two" in found(server, event="prompt", request_id="two")["asked"]
        found(server, event="request", request_id="two")
        reload("{format: text}", r"^\S+ \S+ INFO reload ok=True")
        ask(server, "three", model="atlas", prompt=f"{SECRET}-three", max_tokens=1).raise_for_status()
        line = server.logged(r"^\S+ \S+ INFO (POST /v1/completions 200 .* id=three)$")
        assert "tokens=" in line
    log = "\n".join(server.lines)
    assert f"{SECRET}-one" not in log
    assert f"{SECRET}-three" not in log
