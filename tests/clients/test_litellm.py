"""`litellm`, as a library and as what many tools call through it."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel

from tests.clients.said import COUNTRY

CLIENTS = ["litellm"]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


class Country(BaseModel):
    name: str
    capital: str


@pytest.fixture
def server(url: str) -> dict[str, Any]:
    return {"api_base": url, "api_key": "no-key", "num_retries": 0}


def test_chat(server: dict[str, Any]) -> None:
    reply = litellm.completion(model="openai/atlas", messages=QUESTION, temperature=0, **server)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens > 0


def test_stream(server: dict[str, Any]) -> None:
    stream = litellm.completion(
        model="openai/atlas:pirate",
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        **server,
    )
    chunks = list(stream)
    whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert whole.choices[0].message.content == "Arr! The capital of France be Paris."
    assert whole.usage.completion_tokens > 0


def test_text_completion(server: dict[str, Any]) -> None:
    reply = litellm.text_completion(
        model="text-completion-openai/geographer", prompt="Which?", max_tokens=100, temperature=0, **server
    )
    assert json.loads(reply.choices[0].text) == COUNTRY


def test_tools(server: dict[str, Any]) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    reply = litellm.completion(model="openai/weather", messages=messages, tools=[WEATHER], **server)
    (called,) = reply.choices[0].message.tool_calls
    assert json.loads(called.function.arguments) == {"city": "Paris", "days": 2}
    messages += [reply.choices[0].message, {"role": "tool", "tool_call_id": called.id, "content": "sunny"}]
    after = litellm.completion(model="openai/weather", messages=messages, tools=[WEATHER], **server)
    assert after.choices[0].message.content == "It is sunny in Paris."


def test_streamed_tools(server: dict[str, Any]) -> None:
    stream = litellm.completion(model="openai/traveller", messages=QUESTION, tools=[WEATHER], stream=True, **server)
    whole = litellm.stream_chunk_builder(list(stream))
    cities = [json.loads(called.function.arguments)["city"] for called in whole.choices[0].message.tool_calls]
    assert cities == ["Paris", "Rome"]


def test_structured(server: dict[str, Any]) -> None:
    reply = litellm.completion(model="openai/geographer", messages=QUESTION, response_format=Country, **server)
    assert Country.model_validate_json(reply.choices[0].message.content) == Country(**COUNTRY)


def test_reasoning(server: dict[str, Any]) -> None:
    reply = litellm.completion(model="openai/thinker", messages=QUESTION, **server)
    assert "Its capital?" in reply.choices[0].message.reasoning_content
    assert reply.choices[0].message.content.strip() == "Paris, naturellement."


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"temperature": -1}, litellm.BadRequestError),
        ({"model": "openai/nobody"}, litellm.NotFoundError),
        ({"messages": [{"role": "user", "content": "far too long " * 5000}]}, litellm.ContextWindowExceededError),
    ],
)
def test_errors(server: dict[str, Any], fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        litellm.completion(**{"model": "openai/atlas", "messages": QUESTION, **server, **fields})
