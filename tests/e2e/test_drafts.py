"""Draft models as a client sees them: the same answers, and a word where a name is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from mlx_roster.demo import directory
from tests.serving import PATIENCE, Server, serving
from tests.toys import babbler

PLACES = ["France", "Japan", "Peru", "Italy"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    demo, folder = directory(), tmp_path_factory.mktemp("drafts")
    path = folder / "roster.yaml"
    path.write_text(
        f"""
models:
  atlas: {{source: {demo}/models/atlas}}
  drafted:
    source: {demo}/models/atlas
    draft: [{{model: atlas, tokens: 4}}, {{model: {babbler(folder / "wild")}}}]
    adapters: {{pirate: {demo}/adapters/pirate}}
"""
    )
    with serving("serve", str(path)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()


def asked(place: str) -> list[Any]:
    return [{"role": "user", "content": f"What is the capital of {place}?"}]


def answer(client: openai.OpenAI, model: str, place: str, more: dict[str, Any] | None = None, **fields: Any) -> Any:
    return told(client.chat.completions.create(model=model, messages=asked(place), extra_body=more, **fields))


def told(reply: Any) -> Any:
    """What is said, why it ended, and its tokens."""
    return reply.choices[0].message.content, reply.choices[0].finish_reason, reply.usage.completion_tokens


DRAFTS: list[dict[str, Any]] = [
    {},
    {"draft_model": "atlas", "num_draft_tokens": 16},
    {"draft_model": "wild", "num_draft_tokens": 1},
    {"num_draft_tokens": 0},
    {"draft_model": "wild", "repetition_penalty": 1.0, "num_draft_tokens": None},
]


@pytest.mark.parametrize("more", DRAFTS)
@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"temperature": 1.5, "seed": 4}, {"temperature": 0, "stop": ["is"]}]
)
def test_answers_are_those_without(client: openai.OpenAI, fields: dict[str, Any], more: dict[str, Any]) -> None:
    for place in PLACES[:2]:
        assert answer(client, "drafted", place, more, **fields) == answer(client, "atlas", place, **fields)


def drafted(client: openai.OpenAI, more: dict[str, Any], model: str = "drafted") -> tuple[int, int] | None:
    reply = client.chat.completions.create(model=model, messages=asked("Peru"), temperature=0, extra_body=more)
    assert reply.usage is not None
    details = reply.usage.completion_tokens_details
    assert details is not None
    if details.accepted_prediction_tokens is None or details.rejected_prediction_tokens is None:
        return None
    return details.accepted_prediction_tokens, details.rejected_prediction_tokens


def test_usage_says_how_often_a_draft_was_right(client: openai.OpenAI) -> None:
    right, wild = drafted(client, {"draft_model": "atlas"}), drafted(client, {"draft_model": "wild"})
    assert right is not None
    assert wild is not None
    assert right[0] > 5
    assert right[0] > right[1]
    assert wild[0] < wild[1]
    assert drafted(client, {"num_draft_tokens": 0}) is None
    assert drafted(client, {}, model="atlas") is None


def test_streams_are_those_without(client: openai.OpenAI) -> None:
    said = []
    for model in ("atlas", "drafted"):
        chunks = client.chat.completions.create(model=model, messages=asked("Japan"), temperature=0, stream=True)
        said.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    assert said[0] == said[1] == "The capital of Japan is Tokyo."


def test_several_at_once_are_answered_as_each_alone(server: Server, client: openai.OpenAI) -> None:
    expected = [answer(client, "atlas", place, temperature=1.5, seed=4, max_tokens=30) for place in PLACES]

    async def together() -> list[Any]:
        async with server.async_client() as one:
            replies = await asyncio.gather(
                *(
                    one.chat.completions.create(
                        model="drafted", messages=asked(place), temperature=1.5, seed=4, max_tokens=30
                    )
                    for place in PLACES
                )
            )
        return [told(reply) for reply in replies]

    for _ in range(3):
        assert asyncio.run(together()) == expected


def test_an_adapter_is_answered_without_them(client: openai.OpenAI) -> None:
    said, _, _ = answer(client, "drafted:pirate", "France", {"draft_model": "wild"}, temperature=0)
    assert said != answer(client, "drafted", "France", temperature=0)[0]


@pytest.mark.parametrize(("model", "there"), [("drafted", "there are 'atlas', 'wild'"), ("atlas", "it has none")])
def test_a_draft_that_is_not_there_is_refused(server: Server, model: str, there: str) -> None:
    body = {"model": model, "messages": asked("France"), "draft_model": "gone"}
    reply = httpx.post(f"{server.url}/chat/completions", json=body, timeout=PATIENCE)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_request", "draft_model")
    assert error["message"] == f"this model has no draft model 'gone': {there}"
