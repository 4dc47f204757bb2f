"""The `openai` SDK: tools, structured answers, reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.said import COUNTRY

CLIENTS = ["openai"]

ASKED = [{"role": "user", "content": "How is the weather in Paris?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of some days",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Country(BaseModel):
    name: str
    capital: str


class Vote(BaseModel):
    """An answer that any model gives sooner or later, if nothing else is let through."""

    choice: Literal["yes", "no", "maybe"]
    sure: bool


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="no-key", max_retries=0) as client:
        yield client


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="weather", messages=ASKED, tools=[WEATHER])
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (called,) = choice.message.tool_calls
    assert called.type == "function"
    assert called.function.name == "get_weather"
    assert json.loads(called.function.arguments) == {"city": "Paris", "days": 2}
    result = {"role": "tool", "tool_call_id": called.id, "content": "sunny"}
    after = client.chat.completions.create(
        model="weather", messages=[*ASKED, choice.message, result], tools=[WEATHER], temperature=0
    )
    assert after.choices[0].message.content == "It is sunny in Paris."
    assert after.choices[0].finish_reason == "stop"


def test_streamed_calls_agree(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="traveller", messages=ASKED, tools=[WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, json.loads(event.arguments)["city"]) for event in done] == [(0, "Paris"), (1, "Rome")]
    whole = client.chat.completions.create(model="traveller", messages=ASKED, tools=[WEATHER])
    streamed, unstreamed = final.choices[0].message.tool_calls, whole.choices[0].message.tool_calls
    assert streamed is not None
    assert unstreamed is not None
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in unstreamed]
    assert len({call.id for call in streamed}) == 2
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"


def test_no_tool_is_called_with_none(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="atlas", messages=ASKED, tools=[WEATHER], tool_choice="none", seed=1)
    assert reply.choices[0].message.tool_calls is None


VOTE = {"type": "function", "function": {"name": "vote", "strict": True, "parameters": Vote.model_json_schema()}}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "vote"}}])
@pytest.mark.parametrize("model", ["weather", "geographer"])
def test_a_call_that_is_demanded(client: openai.OpenAI, model: str, choice: Any) -> None:
    reply = client.chat.completions.create(
        model=model, messages=ASKED, tools=[VOTE], tool_choice=choice, parallel_tool_calls=False, max_tokens=500, seed=3
    )
    assert reply.choices[0].message.tool_calls is not None
    (called,) = reply.choices[0].message.tool_calls
    assert called.function.name == "vote"
    Vote.model_validate_json(called.function.arguments)


def test_parsed_tools(client: openai.OpenAI) -> None:
    class get_weather(BaseModel):  # noqa: N801
        city: str
        days: int

    reply = client.chat.completions.parse(
        model="weather", messages=ASKED, tools=[openai.pydantic_function_tool(get_weather)]
    )
    assert reply.choices[0].message.tool_calls is not None
    assert reply.choices[0].message.tool_calls[0].function.parsed_arguments == get_weather(city="Paris", days=2)


@pytest.mark.parametrize("model", ["atlas", "atlas:pirate", "babbler"])
def test_parse_of_what_no_model_meant(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.parse(model=model, messages=ASKED, response_format=Vote, max_tokens=200, seed=5)
    assert isinstance(reply.choices[0].message.parsed, Vote)


def test_parse_of_what_a_model_meant(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(model="geographer", messages=ASKED, response_format=Country)
    assert reply.choices[0].message.parsed == Country(**COUNTRY)
    with client.chat.completions.stream(model="geographer", messages=ASKED, response_format=Country) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Country(**COUNTRY)


def test_parse_of_what_was_cut_off(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="geographer", messages=ASKED, response_format=Country, max_tokens=2)


def test_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="geographer", messages=ASKED, response_format={"type": "json_object"})
    assert json.loads(reply.choices[0].message.content or "") == COUNTRY


def test_a_schema_that_cannot_be_held_to(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/else.json"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="atlas",
            messages=ASKED,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert caught.value.param == "response_format"
    assert "$ref" in caught.value.message


def test_reasoning(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="thinker", messages=ASKED)
    message = reply.choices[0].message
    assert message.content is not None
    assert message.content.strip() == "Paris, naturellement."
    assert "Its capital?" in message.model_extra["reasoning_content"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens
    stream = client.chat.completions.create(model="thinker", messages=ASKED, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    said = "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas)
    assert said == message.model_extra["reasoning_content"]


def test_no_reasoning_where_it_is_switched_off(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="thinker", messages=ASKED, extra_body={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert (reply.choices[0].message.content or "").strip() == "Paris, naturellement."
    assert not (reply.choices[0].message.model_extra or {}).get("reasoning_content")
