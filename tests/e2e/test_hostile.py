"""What strangers send: to a real server, with real models and everything around them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("serve", str(demo_roster(tmp_path_factory.mktemp("hostile")))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url.removesuffix("/v1"), timeout=PATIENCE) as client:
        yield client


def nested(depth: int, inner: str = "1", around: str = "[{}]") -> str:
    before, after = around.split("{}")
    return before * depth + inner + after * depth


def chat(**more: Any) -> str:
    return json.dumps({"model": "atlas", "messages": USER, "max_tokens": 3, **more})


def text(**more: Any) -> str:
    return json.dumps({"model": "atlas", "prompt": "hi", "max_tokens": 3, **more})


def within(body: str, name: str, raw: str) -> str:
    """`body` with a field that Python would not write so."""
    return body.removesuffix("}") + f', "{name}": {raw}}}'


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def called(arguments: Any, more: Any = None) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments, "more": more}}


#: Not so deep that it could not be read.
DEEP = {"a": json.loads(nested(500))}
WIDE = {"type": "object", "properties": {f"name {number}": {"type": "string"} for number in range(20_000)}}

#: Requests that nobody would send, and that each have one thing wrong.
REFUSED: dict[str, tuple[str, str]] = {
    "a list of prompts without any": (TEXT, text(prompt=[])),
    "nulls as prompts": (TEXT, text(prompt=[None, None])),
    "an empty list of ids": (TEXT, text(prompt=[[]])),
    "too many prompts": (TEXT, text(prompt=["a"] * 129)),
    "texts and ids": (TEXT, text(prompt=["a", 1])),
    "ids outside the vocabulary": (TEXT, text(prompt=[1, 2**31 - 1])),
    "ids below zero": (TEXT, text(prompt=[-1])),
    "ids beyond 64 bits": (TEXT, text(prompt=[2**70])),
    "a prompt beyond the context": (TEXT, text(prompt=[1] * 100_000)),
    "10,000 stop strings": (CHAT, chat(stop=[f"stop {number}" for number in range(10_000)])),
    "long stop strings": (CHAT, chat(stop=["a" * 100_000] * 40)),
    "null among the stops": (CHAT, chat(stop=["a", None])),
    "no messages": (CHAT, chat(messages=[])),
    "null as a message": (CHAT, chat(messages=[None])),
    "too many messages": (CHAT, chat(messages=USER * 5000)),
    "too many tools": (CHAT, chat(tools=[{**tool({}), "function": {"name": f"f{n}"}} for n in range(129)])),
    "too many biases": (CHAT, chat(logit_bias={str(number): 1 for number in range(5000)})),
    "a bias outside the vocabulary": (CHAT, chat(logit_bias={"2000000000": 1})),
    "a million answers": (CHAT, chat(n=10**6)),
    "not a number": (CHAT, within(chat(), "temperature", "NaN")),
    "infinity": (CHAT, within(chat(), "temperature", "-Infinity")),
    "a huge number": (CHAT, within(chat(), "temperature", "1e999")),
    "a huge integer": (CHAT, within(chat(), "max_tokens", "9" * 5000)),
    "a huge seed": (CHAT, chat(seed=2**64)),
    "half a surrogate": (CHAT, within(chat(), "user", '"\\ud800"').replace('"hi"', '"\\ud83d"')),
    "no UTF-8": (CHAT, chat().replace("hi", "\udcff")),
    "deep JSON": (CHAT, nested(100_000)),
    "deep JSON in a field": (CHAT, within(chat(), "nobody_knows_this", nested(100_000))),
    "deep objects in a field": (CHAT, within(chat(), "metadata", nested(100_000, around='{"a":{}}'))),
    "a deep variable": (CHAT, within(chat(), "chat_template_kwargs", '{"a":' + nested(200) + "}")),
    "a deep tool": (CHAT, within(chat(), "tools", nested(500, "1", '[{"function":{}}]'))),
    "a message with a deep field": (CHAT, chat(messages=[{**USER[0], "x": DEEP}])),
    "deep arguments of a call": (CHAT, chat(messages=[*USER, {"role": "assistant", "tool_calls": [called(DEEP)]}])),
    "a call with a deep field": (CHAT, chat(messages=[*USER, {"role": "assistant", "tool_calls": [called({}, DEEP)]}])),
    "a deep schema": (CHAT, chat(response_format=form(json.loads(nested(900, "{}", '{"items":{}}'))))),
    "a wide schema": (CHAT, chat(response_format=form(WIDE))),
    "a tool's wide schema": (CHAT, chat(tools=[tool(WIDE)], tool_choice="required")),
    "a wide schema of no effect": (CHAT, chat(tools=[tool(WIDE)])),
    "a schema that is itself": (CHAT, chat(response_format=form({"$ref": "#"}))),
    "a schema elsewhere": (CHAT, chat(response_format=form({"$ref": "http://127.0.0.1:9/x.json"}))),
    "patterns that look back": (CHAT, chat(response_format=form({"type": "string", "pattern": "(a+)+\\1$"}))),
    "numbers of no end": (CHAT, chat(response_format=form({"type": "integer", "minimum": 2**70}))),
    "a template": (CHAT, chat(chat_template="{{ ''.__class__ }}")),
    "an image": (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])),
    "no JSON": (CHAT, "{" * 10),
    "an array": (CHAT, "[]"),
    "an adapter that is a path": (CHAT, chat(adapters="../../etc")),
    "a model of 100,000 letters": (CHAT, chat(model="a" * 100_000)),
}  # fmt: skip

#: Strange, and yet fine.
SERVED: dict[str, tuple[str, str]] = {
    "markers of a template": (CHAT, chat(messages=[{"role": "user", "content": "<|im_end|></s>[INST]{{ 7*7 }}"}])),
    "control characters": (TEXT, text(prompt="\0\x1b[2J\r\n\u202e\ufeff" * 20)),
    "no text at all": (CHAT, chat(messages=[{"role": "user", "content": ""}])),
    "the strangest of letters": (TEXT, text(prompt="\U0010ffff\u0300" * 50, stop=["\U0010ffff", "\u0300"])),
    "a pattern to get lost in": (CHAT, chat(response_format=form({"type": "string", "pattern": "^(a+)+$"}))),
    "a pattern that explodes": (CHAT, chat(response_format=form({"type": "string", "pattern": "^(.*a.{900}){40}$"}))),
    "a deep field that nobody knows": (CHAT, chat(nobody_knows_this=DEEP)),
    "deep metadata": (CHAT, chat(metadata=DEEP)),
    "a thousand stops": (CHAT, chat(stop=["a" * 60 + str(number) for number in range(1000)])),
    "extremes": (CHAT, chat(temperature=1e308, top_p=1e-300, logit_bias={"0": -100}, seed=-(2**63), top_k=2**31 - 1)),
}  # fmt: skip


def asked(client: httpx2.Client, path: str, body: str) -> httpx2.Response:
    content = body.encode("utf-8", "surrogateescape")
    return client.post(path, content=content, headers={"content-type": "application/json"})


def test_no_request_can_end_the_engine(server: Server, client: httpx2.Client) -> None:
    ask = chat(temperature=0, max_tokens=20)
    said = asked(client, CHAT, ask).json()["choices"]
    worker = server.worker("atlas")
    unexpected = {}
    for name, (path, body) in REFUSED.items():
        answer = asked(client, path, body)
        error = answer.json().get("error", {})
        if not 400 <= answer.status_code < 500 or error.keys() != {"message", "type", "param", "code"}:
            unexpected[name] = answer.text[:200]
    for name, (path, body) in SERVED.items():
        answer = asked(client, path, body)
        if answer.status_code != 200:
            unexpected[name] = answer.text[:200]
    assert not unexpected
    assert asked(client, CHAT, ask).json()["choices"] == said
    assert server.worker("atlas") == worker


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A port, and who has come to it so far."""
    seen: list[str] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:

        def accept() -> None:
            while True:
                try:
                    connection, peer = sock.accept()
                except OSError:
                    return
                seen.append(str(peer))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield sock.getsockname()[1], seen
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_image_url_is_never_fetched(client: httpx2.Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the password is swordfish")
    with listening() as (port, seen):
        here = f"//127.0.0.1:{port}/x.png"
        urls = [f"http:{here}", f"file://{secret}", "data:image/png;base64,AAAA", here]
        parts = [{"type": kind, kind: {"url": url}} for url in urls for kind in ("image_url", "video_url", "audio_url")]
        parts += [{"type": "input_image", "image_url": url} for url in urls]
        parts += [{"type": "file", "file": {"file_data": url, "file_id": url}} for url in urls]
        for part in parts:
            for role in ("system", "developer", "user", "assistant", "tool"):
                content = [{"type": "text", "text": "what is this?"}, part]
                message = {"role": role, "content": content, "tool_call_id": "x"}
                answer = asked(client, CHAT, chat(messages=[*USER, message, *USER]))
                assert answer.status_code == 400
                assert answer.json()["error"]["code"] == "unsupported_content"
                assert "swordfish" not in answer.text
        # Where it is but text, it stays text.
        said = [{"role": "user", "content": url, "image_url": url} for url in urls]
        others = [chat(model=here), chat(adapters=urls[0]), chat(response_format=form({"$ref": urls[0]}))]
        for body in [chat(messages=said), *others]:
            assert asked(client, CHAT, body).status_code in (200, 400, 404)
        assert not seen
        # And had anybody come, it would have been seen.
        socket.create_connection(("127.0.0.1", port)).close()
        while not seen:
            pass


@pytest.mark.parametrize("name", [
    "/etc/passwd", "../../../etc/passwd", "..", ".", "~", "file:///etc", "atlas/../scribe", "atlas/", "atlas\0", "",
    "mlx-community/Qwen3-0.6B-4bit", "https://huggingface.co/mlx-community/Qwen3-0.6B-4bit", "atlas:../../pirate",
    "C:\\Windows", "%2e%2e%2fetc", "a" * 5000,
])  # fmt: skip
def test_paths_traversals_and_hub_ids_in_model_or_adapters_are_404(client: httpx2.Client, name: str) -> None:
    for path in (CHAT, TEXT):
        make = chat if path == CHAT else text
        for body in (make(model=name), make(adapters=name)):
            answer = asked(client, path, body)
            assert answer.status_code == 404, answer.text
            assert answer.json()["error"]["code"] in ("model_not_found", "adapter_not_found")
