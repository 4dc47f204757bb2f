"""Where the values come from that a request leaves out, and what a model has no use for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mlx_roster.core import Generation, Sampling
from tests.server.harness import Running, assert_error, running

ROSTER: dict[str, Any] = {
    "defaults": {"temperature": 0.6, "top_k": 60, "min_p": 0.6, "top_p": 0.6, "max_tokens": 60, "stop": ["file"]},
    "models": {
        "atlas": {
            "source": "/fake/atlas",
            "generation_config": True,
            "defaults": {"temperature": 0.5, "top_k": 50, "min_p": 0.5, "max_tokens": 50},
            "aliases": {"gpt-4o": {"temperature": 0.4, "top_k": 40}},
        },
        "plain": {"source": "/fake/plain", "generation_config": False},
    },
}
#: What the model itself recommends, in numbers as its file has them.
OWN = {"temperature": 0.7, "top_k": 70.0, "top_p": 0.7, "repetition_penalty": 1.7, "max_tokens": 70.0}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def server() -> Iterator[Running]:
    with running(**ROSTER) as server:
        for name in ROSTER["models"]:
            server.workers.capabilities[name] = {"generation": OWN, "template": ("messages", "persona")}
        yield server


def asked(server: Running, client: httpx2.Client, **fields: Any) -> Generation:
    client.post("/v1/completions", json={"prompt": "hi", **fields}).raise_for_status()
    return server.generations[-1]


def test_the_order_of_defaults(server: Running, client: httpx2.Client) -> None:
    found = asked(server, client, model="gpt-4o", temperature=0.3)
    assert found.sampling == Sampling(temperature=0.3, top_k=40, min_p=0.5, top_p=0.6, repetition_penalty=1.7)
    assert (found.max_tokens, found.stop) == (50, ("file",))
    found = asked(server, client, model="atlas")
    assert found.sampling == Sampling(temperature=0.5, top_k=50, min_p=0.5, top_p=0.6, repetition_penalty=1.7)
    # Only where the roster says so does the model's own file count.
    found = asked(server, client, model="plain", stop=[])
    assert found.sampling == Sampling(temperature=0.6, top_k=60, min_p=0.6, top_p=0.6)
    assert (found.max_tokens, found.stop) == (60, ())


def test_more_tokens_at_least_than_the_defaults_allow_at_most(server: Running, client: httpx2.Client) -> None:
    response = client.post("/v1/completions", json={"model": "atlas", "prompt": "hi", "min_tokens": 51})
    assert "50" in assert_error(response, 400, "invalid_request", "min_tokens")
    assert server.generations == []
    response = client.post("/v1/completions", json={"model": "atlas", "prompt": "hi", "min_tokens": 51, "stream": True})
    assert_error(response, 400, "invalid_request", "min_tokens")


def test_draft_models_are_those_of_the_model(server: Running, client: httpx2.Client) -> None:
    server.workers.capabilities["atlas"] |= {"drafts": ("small", "tiny")}
    assert asked(server, client, model="atlas", draft_model="tiny").draft == "tiny"
    response = client.post("/v1/completions", json={"model": "atlas", "prompt": "hi", "draft_model": "large"})
    assert "'small', 'tiny'" in assert_error(response, 400, "invalid_request", "draft_model")
    response = client.post("/v1/completions", json={"model": "atlas", "prompt": "hi", "draft_model": "é" * 100_000})
    assert len(assert_error(response, 400, "invalid_request", "draft_model")) < 300


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"chat_template_kwargs": {"persona": "x"}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False, "thinking": True}}, None),
        (
            {"chat_template_kwargs": {"persona": 1, "mood": 2, "voice": 3}},
            "chat_template_kwargs.mood,chat_template_kwargs.voice",
        ),
        ({"chat_template_args": {"mood": 2}}, "chat_template_args.mood"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, "chat_template_kwargs.reasoning_effort"),
        ({"mirostat": 1, "reasoning_effort": "low"}, "mirostat,reasoning_effort"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_template_does_not_look_at_is_named(
    server: Running, client: httpx2.Client, fields: dict[str, Any], ignored: str | None, stream: bool
) -> None:
    body = {"model": "atlas", **CHAT, **fields, "stream": stream}
    response = client.post("/v1/chat/completions", json=body)
    assert response.is_success
    assert response.headers.get_list("x-roster-ignored") == ([ignored] if ignored else [])


def test_of_a_template_that_is_not_known_nothing_is_said(server: Running, client: httpx2.Client) -> None:
    server.workers.capabilities["atlas"] = {"template": ()}
    response = client.post("/v1/chat/completions", json={"model": "atlas", **CHAT, "reasoning_effort": "low"})
    assert "x-roster-ignored" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
def test_where_nothing_may_be_ignored_it_is_refused(stream: bool) -> None:
    with running(**ROSTER, server={"strict_fields": True}) as server, server.client() as client:
        server.workers.capabilities["atlas"] = {"template": ("messages", "persona")}
        good = {"model": "atlas", **CHAT, "chat_template_kwargs": {"persona": 1}, "stream": stream}
        assert client.post("/v1/chat/completions", json=good).is_success
        bad = {**good, "chat_template_kwargs": {"mood": 1}}
        assert_error(client.post("/v1/chat/completions", json=bad), 400, "invalid_request", "chat_template_kwargs.mood")
        bad = {**good, "reasoning_effort": "low"}
        assert_error(client.post("/v1/chat/completions", json=bad), 400, "invalid_request", "reasoning_effort")


@pytest.mark.parametrize(
    ("strict", "choice", "ignored"),
    [
        (True, "auto", ["tools.function.strict"]),
        (True, "required", []),
        (True, "none", []),
        (False, "auto", []),
        (None, "auto", []),
    ],
)
def test_strict_functions_that_nothing_enforces_are_named(
    server: Running, client: httpx2.Client, strict: bool | None, choice: str, ignored: list[str]
) -> None:
    tools = [{"type": "function", "function": {"name": "look", "strict": strict}}]
    body = {"model": "atlas", **CHAT, "tools": tools, "tool_choice": choice}
    response = client.post("/v1/chat/completions", json=body)
    assert response.is_success
    assert response.headers.get_list("x-roster-ignored") == ignored
