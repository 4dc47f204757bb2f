"""Streamed and unstreamed say the same, whatever is asked for and whoever else is in the batch; so does a seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import httpx2 as httpx
import pytest

from mlx_roster.demo.facts import facts
from tests.serving import PATIENCE, Server, demo_roster, serving
from tests.toys import scripted

#: What a call and some thinking look like where a model is made to say them.
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "naïve 🎉", "count": 3}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "look_up", "arguments": {"word": "été"}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}

QUESTIONS = [fact.question for fact in facts("atlas")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("agreement")
    caller = scripted(folder / "caller", f"Let me see.\n{CALL}\n{OTHER}")
    thinker = scripted(folder / "thinker", "<think>\nTwo and two, naïvely 🎉.\n</think>\n\nFour.", thinking=True)
    models = [f"  caller: {{source: {caller}}}", f"  thinker: {{source: {thinker}}}"]
    with serving("serve", str(demo_roster(folder, models=models))) as server:
        yield server


#: Values that fields of either route are drawn from.
OPTIONAL: dict[str, list[Any]] = {
    "temperature": [0, 0.3, 1, 1.7],
    "top_p": [0.5, 0.95, 1],
    "top_k": [0, 1, 5, 1000],
    "min_p": [0, 0.05, 0.5],
    "xtc_probability": [0.5, 1],
    "xtc_threshold": [0.05, 0.3],
    "repetition_penalty": [0.8, 1.3],
    "presence_penalty": [-1, 0.7],
    "frequency_penalty": [-0.5, 1.5],
    "repetition_context_size": [0, 3, 50],
    "logit_bias": [{"5": 3, "300": -100}, {"20": 1.5}],
    "stop": ["a", ["is", " of"], ["\n", "ab", "é"]],
    "n": [2, 3],
    "adapters": ["pirate", "french"],
}

#: These models say what they do by construction: no bias and no penalty is to change that.
HARMLESS = {name: OPTIONAL[name] for name in ("temperature", "top_p", "n")}

PROMPTS: list[Any] = ["The capital of", ["Tell me", "What is ü 🎉"], [5, 6, 7, 300], [[9, 9], [100]]]
SCORES: list[dict[str, Any]] = [{"logprobs": True}, {"logprobs": True, "top_logprobs": 4}, {"logprobs": 3}]
FORMATS = [{"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}, {"type": "json_object"}]
CHOICES = ["auto", "required", {"type": "function", "function": {"name": "look_up"}}]

Drawn = tuple[str, dict[str, Any]]


def fields(rng: random.Random, values: dict[str, list[Any]]) -> dict[str, Any]:
    """About a quarter of them."""
    return {name: rng.choice(its) for name, its in values.items() if rng.random() < 0.25}


def text(rng: random.Random) -> Drawn:
    body = fields(rng, OPTIONAL | {"logprobs": [0, 1, 5], "echo": [True]})
    lengths = [0, 1, 30] if body.get("echo") else [1, 30]
    return "/completions", body | {"prompt": rng.choice(PROMPTS), "max_tokens": rng.choice(lengths)}


def chat(rng: random.Random) -> Drawn:
    asked = {"messages": [{"role": "user", "content": rng.choice(QUESTIONS)}]}
    scored = rng.choice(SCORES) if rng.random() < 0.3 else {}
    return "/chat/completions", fields(rng, OPTIONAL) | asked | scored | {"max_tokens": rng.choice([1, 2, 7, 30])}


def formatted(rng: random.Random) -> Drawn:
    path, body = chat(rng)
    return path, body | {"response_format": rng.choice(FORMATS), "max_tokens": 60}


def tools(rng: random.Random) -> Drawn:
    path, body = chat(rng)
    body = fields(rng, HARMLESS | {"parallel_tool_calls": [False]}) | {"messages": body["messages"], "tools": TOOLS}
    return path, body | {"model": "caller", "tool_choice": rng.choice(CHOICES), "max_tokens": rng.choice([5, 40, 300])}


def thinking(rng: random.Random) -> Drawn:
    path, body = chat(rng)
    body = fields(rng, HARMLESS | {"response_format": FORMATS}) | {"messages": body["messages"]}
    return path, body | {"model": "thinker", "max_tokens": rng.choice([3, 20, 100])}


def drawn(rng: random.Random) -> Drawn:
    """A route and a request that means something, its fields drawn at random."""
    path, body = rng.choice([chat, chat, text, text, formatted, tools, thinking])(rng)
    return path, body | {"seed": rng.randrange(1000)}


def whole(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What an answer's choices say, but for ids that are made up."""
    choices = []
    for choice in answer["choices"]:
        message = choice.get("message") or {"content": choice["text"]}
        calls = [call["function"] for call in message.get("tool_calls") or []]
        choices.append(
            {
                "content": message["content"] or "",
                "reasoning": message.get("reasoning_content") or "",
                "calls": [(call["name"], call["arguments"]) for call in calls],
                "logprobs": choice["logprobs"],
                "finish": choice["finish_reason"],
            }
        )
    return choices


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same of a stream."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            empty = {"content": "", "reasoning": "", "calls": {}, "logprobs": None, "finish": None}
            choice = choices.setdefault(part["index"], empty)
            delta = part.get("delta") or {"content": part.get("text")}
            assert choice["finish"] is None, "a choice goes on after its end"
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] not in choice["calls"]:
                    assert call["id"]
                    assert call["type"] == "function"
                    choice["calls"][call["index"]] = [call["function"]["name"], ""]
                choice["calls"][call["index"]][1] += call["function"].get("arguments") or ""
            choice["logprobs"] = _more(choice["logprobs"], part["logprobs"])
            choice["finish"] = part["finish_reason"]
    for choice in choices.values():
        assert list(choice["calls"]) == list(range(len(choice["calls"])))
        choice["calls"] = [tuple(call) for call in choice["calls"].values()]
    return [choices[index] for index in sorted(choices)]


def _more(so_far: dict[str, Any] | None, more: dict[str, Any] | None) -> dict[str, Any] | None:
    if so_far is None or more is None:
        return so_far or more
    return {name: (so_far[name] or []) + (more[name] or []) for name in so_far}


def measured(logprobs: dict[str, Any] | None) -> tuple[Any, list[float]]:
    """What was scored, and all numbers: these hang in their last bits on how many are in the batch."""
    if logprobs is None:
        return None, []
    if "content" in logprobs:
        entries = logprobs["content"]
        alternatives = [entry["top_logprobs"] for entry in entries]
        said, numbers = [(entry["token"], entry["bytes"]) for entry in entries], [entry["logprob"] for entry in entries]
    else:
        alternatives = [top or [] for top in logprobs["top_logprobs"]]
        said, numbers = [logprobs["tokens"], logprobs.get("text_offset")], logprobs["token_logprobs"]
    tops = [[*top.values()] if isinstance(top, dict) else [each["logprob"] for each in top] for top in alternatives]
    return (said, [len(top) for top in tops]), [number or 0.0 for number in [*numbers, *chain.from_iterable(tops)]]


def check(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        said, numbers = measured(mine.pop("logprobs"))
        others_said, others_numbers = measured(theirs.pop("logprobs"))
        assert mine == theirs
        assert said == others_said
        assert numbers == pytest.approx(others_numbers, abs=1e-3)


async def unstreamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, (body, response.text)
    return whole(response.json()), response.json()["usage"]


async def streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", path, json=asked) as response:
        assert response.status_code == 200, (body, await response.aread())
        lines = [line async for line in response.aiter_lines()]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    answer = [json.loads(event) for event in events]
    assert not any("error" in event for event in answer), answer
    return joined(answer), answer[-1]["usage"]


async def agree(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    """Ask twice, with whatever else is running, and then with something else."""
    one, usage = await unstreamed(client, path, body)
    other, counted = await streamed(client, path, body)
    # The second finds more of its prompt in the cache.
    for each in (usage, counted):
        del each["prompt_tokens_details"]
    assert counted == usage, body
    try:
        check(one, other)
    except AssertionError as error:
        raise AssertionError(f"{path} {json.dumps(body)}") from error


def test_streamed_equals_unstreamed_for_200_random_requests_and_a_seed_equals_itself(server: Server) -> None:
    rng = random.Random(5)
    requests = [drawn(rng) for _ in range(200)]

    async def compare() -> None:
        limit = asyncio.Semaphore(8)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

            async def one(path: str, body: dict[str, Any]) -> None:
                async with limit:
                    await agree(client, path, body)

            await asyncio.gather(*(one(path, body) for path, body in requests))

    asyncio.run(compare())
