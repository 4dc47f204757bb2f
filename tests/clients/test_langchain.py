"""`langchain-openai`: ChatOpenAI and OpenAI."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from tests.clients.said import COUNTRY

CLIENTS = ["langchain-openai", "langchain-core"]

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class Country(BaseModel):
    """A country and its capital."""

    name: str
    capital: str


class Vote(BaseModel):
    """A vote."""

    choice: Literal["yes", "no", "maybe"]
    sure: bool


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of some days."""
    return "sunny"


@pytest.fixture
def server(url: str) -> dict[str, Any]:
    return {"base_url": url, "api_key": "no-key", "max_retries": 0}


def test_chat(server: dict[str, Any]) -> None:
    reply = ChatOpenAI(model="atlas", temperature=0, **server).invoke(QUESTION)
    assert reply.content == ANSWER
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] > 0


def test_stream(server: dict[str, Any]) -> None:
    chunks = list(ChatOpenAI(model="atlas:pirate", temperature=0, stream_usage=True, **server).stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == "Arr! The capital of France be Paris."
    assert any(chunk.usage_metadata for chunk in chunks)


def test_batch(server: dict[str, Any]) -> None:
    replies = ChatOpenAI(model="atlas", temperature=0, **server).batch([QUESTION] * 3)
    assert [reply.content for reply in replies] == [ANSWER] * 3


def test_completion(server: dict[str, Any]) -> None:
    said = OpenAI(model="geographer", max_tokens=100, temperature=0, **server).invoke("Which?")
    assert Country.model_validate_json(said) == Country(**COUNTRY)


@pytest.mark.parametrize("streaming", [False, True])
def test_tools(server: dict[str, Any], streaming: bool) -> None:
    model = ChatOpenAI(model="weather", streaming=streaming, **server).bind_tools([get_weather])
    messages: list[BaseMessage] = [HumanMessage("How is the weather in Paris?")]
    reply = model.invoke(messages)
    assert isinstance(reply, AIMessage)
    (called,) = reply.tool_calls
    assert (called["name"], called["args"]) == ("get_weather", {"city": "Paris", "days": 2})
    result = get_weather.invoke(called)
    assert isinstance(result, ToolMessage)
    assert model.invoke([*messages, reply, result]).content == "It is sunny in Paris."


@pytest.mark.parametrize(
    ("model", "method"),
    [("geographer", "json_schema"), ("geographer", "json_mode"), ("instructed", "function_calling")],
)
def test_structured(server: dict[str, Any], model: str, method: Any) -> None:
    chain = ChatOpenAI(model=model, **server).with_structured_output(Country, method=method)
    assert chain.invoke(QUESTION) == Country(**COUNTRY)


@pytest.mark.parametrize(("model", "method"), [("babbler", "json_schema"), ("weather", "function_calling")])
def test_structured_by_grammar_alone(server: dict[str, Any], model: str, method: Any) -> None:
    chain = ChatOpenAI(model=model, max_completion_tokens=500, **server).with_structured_output(Vote, method=method)
    assert isinstance(chain.invoke(QUESTION), Vote)


def test_errors(server: dict[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(model="nobody", **server).invoke(QUESTION)
    with pytest.raises(openai.BadRequestError):
        ChatOpenAI(model="atlas", top_p=3, **server).invoke(QUESTION)
