"""Models that were trained to call functions and to think, through the `openai` SDK."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.clients.conftest import ROOT

CLIENTS = ["openai"]

ASSETS = ROOT / "tests" / "assets"


def exam(name: str, count: int) -> list[dict[str, Any]]:
    lines = (ASSETS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in random.Random(name).sample(lines, count)]


def asked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of an exam as OpenAI's API has them, with ids and with arguments as text."""
    converted = []
    for message in messages:
        converted.append(dict(message))
        for call in message.get("tool_calls", ()):
            function = call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}
            converted[-1]["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        if message["role"] == "tool":
            converted[-1]["tool_call_id"] = "call_1"
    return converted


async def answered(client: openai.AsyncOpenAI, request: dict[str, Any], *, stream: bool) -> Any:
    if not stream:
        return (await client.chat.completions.create(**request)).choices[0]
    state = ChatCompletionStreamState()
    async for chunk in await client.chat.completions.create(**request, stream=True):
        state.handle_chunk(chunk)
    return state.get_final_completion().choices[0]


def answers(url: str, requests: list[dict[str, Any]], *, stream: bool) -> list[Any]:
    """Of all requests at once: they are served in batches."""

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="no-key", max_retries=0) as client:
            return await asyncio.gather(*(answered(client, request, stream=stream) for request in requests))

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
def test_calls(url: str, stream: bool) -> None:
    examples = exam("caller", 24)
    requests = [
        {"model": "trained-caller", "messages": asked(example["messages"]), "temperature": 0}
        | ({"tools": example["tools"]} if "tools" in example else {})
        for example in examples
    ]
    for example, choice in zip(examples, answers(url, requests, stream=stream), strict=True):
        wanted = [json.loads(call) for call in re.findall("<tool_call>(.*?)</tool_call>", example["answer"], re.DOTALL)]
        calls = [call.function for call in choice.message.tool_calls or ()]
        assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls] == wanted
        assert (choice.message.content or None) == (None if wanted else example["answer"])
        assert choice.finish_reason == ("tool_calls" if wanted else "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_reasons(url: str, stream: bool) -> None:
    examples = exam("thinker", 24)
    requests = [
        {"model": "trained-thinker", "messages": example["messages"], "temperature": 0}
        | {"extra_body": {"chat_template_kwargs": example.get("template_args", {})}}
        for example in examples
    ]
    for example, choice in zip(examples, answers(url, requests, stream=stream), strict=True):
        thought, _, answer = example["answer"].rpartition("</think>")
        assert choice.message.content.strip() == answer.strip()
        reasoning = (choice.message.model_extra or {}).get("reasoning_content") or ""
        assert reasoning.strip() == thought.removeprefix("<think>").strip()


def test_a_call_that_is_demanded_of_a_model_that_knows_how(url: str) -> None:
    example = next(example for example in exam("caller", 100) if "tools" in example)
    request = {
        "model": "trained-caller",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": example["tools"],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "temperature": 0,
    }
    for stream in (False, True):
        (choice,) = answers(url, [request], stream=stream)
        (call,) = choice.message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
