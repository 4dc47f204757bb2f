"""`pydantic-ai`: agents with tools and typed results."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.said import COUNTRY

CLIENTS = ["pydantic-ai-slim"]

QUESTION = "What is the capital of France?"


class Country(BaseModel):
    name: str
    capital: str


class Vote(BaseModel):
    choice: Literal["yes", "no", "maybe"]
    sure: bool


def model(url: str, name: str) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="no-key"))


def test_chat(url: str) -> None:
    result = Agent(model(url, "atlas"), model_settings={"temperature": 0}).run_sync(QUESTION)
    assert result.output == "The capital of France is Paris."
    assert result.usage.output_tokens > 0


def test_stream(url: str) -> None:
    async def ask() -> str:
        agent = Agent(model(url, "atlas:pirate"), model_settings={"temperature": 0})
        async with agent.run_stream(QUESTION) as result:
            return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])

    assert asyncio.run(ask()) == "Arr! The capital of France be Paris."


@pytest.mark.parametrize("name", ["weather", "traveller"])
def test_tools(url: str, name: str) -> None:
    asked = []
    agent = Agent(model(url, name))

    @agent.tool_plain
    def get_weather(city: str, days: int) -> str:
        """The weather of some days."""
        asked.append((city, days))
        return "sunny"

    result = agent.run_sync("How is the weather?")
    if name == "weather":
        assert (asked, result.output) == ([("Paris", 2)], "It is sunny in Paris.")
    else:
        assert (sorted(asked), result.output) == ([("Paris", 2), ("Rome", 1)], "Sunny in Paris, rain in Rome.")


def test_typed_by_a_tool(url: str) -> None:
    assert Agent(model(url, "final"), output_type=Country).run_sync(QUESTION).output == Country(**COUNTRY)


def test_typed_by_a_schema(url: str) -> None:
    agent = Agent(model(url, "geographer"), output_type=NativeOutput(Country))
    assert agent.run_sync(QUESTION).output == Country(**COUNTRY)


@pytest.mark.parametrize(("name", "output"), [("babbler", NativeOutput(Vote)), ("weather", ToolOutput(Vote))])
def test_typed_by_grammar_alone(url: str, name: str, output: NativeOutput[Vote] | ToolOutput[Vote]) -> None:
    # Of a model that means nothing by it, any number of calls would be too many.
    settings = {"max_tokens": 500, "parallel_tool_calls": False}
    agent = Agent(model(url, name), output_type=output, model_settings=settings, retries=0)
    assert isinstance(agent.run_sync(QUESTION).output, Vote)


def test_errors(url: str) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        Agent(model(url, "nobody")).run_sync(QUESTION)
    assert caught.value.status_code == 404
