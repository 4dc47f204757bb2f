"""Ten thousand request bodies that nobody would send, to a real server with a real model: each is answered as
docs/api.md says, and the model behind it is the same one as before.

Its sibling for what goes between the server and its workers is tests/workers/test_wire_fuzz.py.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from bench.chaos.ledger import DOCUMENT, documented
from tests.serving import PATIENCE, Server, demo_roster, serving

#: Bodies that are sent at a time, and how often.
TOGETHER = 20
BATCHES = 500

ERRORS = documented(DOCUMENT.read_text())
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}

#: Whole requests to begin with. Between them they have every field.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": True},
        {
            "model": "atlas",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "42"},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "model": "atlas:pirate",
            "messages": [{"role": "developer", "content": "hi"}, {"role": "user", "content": "hi"}],
            "logprobs": True,
            "top_logprobs": 3,
            "logit_bias": {"17": -5},
            "n": 2,
            "seed": 3,
            "stop": ["x", "yz"],
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "xtc_probability": 0.1,
            "xtc_threshold": 0.2,
        },
        {
            "messages": [{"role": "user", "content": "hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
            "chat_template_kwargs": {"enable_thinking": False},
            "reasoning_effort": "low",
            "role_mapping": {"user": "U: "},
            "metadata": {"a": "b"},
            "user": "me",
        },
        {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_object"}, "adapters": None},
    ],
    "/v1/completions": [
        {"prompt": "The capital of France is", "logprobs": 2, "echo": True, "max_tokens": 2},
        {"prompt": [[1, 2, 3], [4]], "adapters": "pirate", "min_tokens": 1, "ignore_eos": True, "max_tokens": 2},
        {"prompt": ["a", "b"], "n": 2, "best_of": 2, "stream": True, "keep_alive": "15m"},
        {"prompt": [5, 6], "draft_model": None, "num_draft_tokens": 2, "suffix": None, "max_completion_tokens": 2},
    ],
}

numbers = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("", "auto", "required", "none", "json_object", "never", "-1s", "\0", "\ud800", "a" * 5000),
            *("../../etc/passwd", "org/name", "atlas:pirate", "http://127.0.0.1:9/x.png", "{{ 7*7 }}", "(a+)+$"),
            *("\u202e", "<|im_end|>"),
        ]
    ),
)
scalars: SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), numbers, texts)
junk: SearchStrategy[Any] = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
        max_leaves=8,
    ),
    # Deep, and long.
    st.integers(1, 200).map(lambda depth: json.loads("[" * depth + "]" * depth)),
    st.integers(1, 3000).map(lambda length: ["x"] * length),
    st.integers(1, 80).map(lambda depth: json.loads('{"items":' * depth + "{}" + "}" * depth)),
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside `value`."""
    steps: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in steps:
        yield (*path, step)
        yield from places(child, (*path, step))


@st.composite
def requests(draw: DrawFn) -> tuple[str, bytes]:
    """A path and a body: one of BODIES, with some of it replaced, taken out, added, or broken as bytes."""
    path = draw(st.sampled_from(sorted(BODIES)))
    # Now and then the other route's.
    from_any = BODIES[path] if draw(st.integers(0, 9)) else [body for bodies in BODIES.values() for body in bodies]
    body = copy.deepcopy(draw(st.sampled_from(from_any)))
    for _ in range(draw(st.integers(0, 3))):
        *above, last = draw(st.sampled_from(list(places(body)) or [("messages",)]))
        holder: Any = body
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(["replace", "replace", "replace", "take out", "add", "double"])):
            case "replace":
                holder[last] = draw(junk)
            case "take out":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder[draw(texts)] = draw(junk)
            case "double" if isinstance(holder, list):
                holder.append(holder[last])
    raw = json.dumps(body, allow_nan=True).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        raw = draw(broken(raw))
    return path, raw


@st.composite
def broken(draw: DrawFn, raw: bytes) -> bytes:
    """`raw`, with something done to its bytes."""
    at = draw(st.integers(0, len(raw)))
    match draw(st.sampled_from(["cut", "insert", "overwrite", "repeat"])):
        case "cut":
            return raw[:at]
        case "insert":
            return raw[:at] + draw(st.binary(min_size=1, max_size=6)) + raw[at:]
        case "overwrite":
            return raw[:at] + draw(st.binary(min_size=1, max_size=3)) + raw[at + 3 :]
        case _:
            return raw[:at] + raw[at // 2 :]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    path = demo_roster(folder)
    # Short answers, whatever is asked for.
    text = path.read_text().replace("aliases: [gpt-3.5-turbo],", "aliases: [gpt-3.5-turbo], max_context: 200,")
    path.write_text(f"defaults: {{max_tokens: 2}}\nscheduling: {{ttl: never}}\n{text}")
    with serving("serve", str(path)) as running:
        yield running


@settings(
    max_examples=BATCHES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(batch=st.lists(requests(), min_size=TOGETHER, max_size=TOGETHER))
def send_batches(server: Server, seen: list[int], batch: list[tuple[str, bytes]]) -> None:
    answers = asyncio.run(answered(server, batch))
    seen += [answer.status_code for answer in answers]
    for (path, raw), answer in zip(batch, answers, strict=True):
        check(answer, f"{path} {raw[:2000]!r}\n{answer.status_code} {answer.text[:500]}")


async def answered(server: Server, batch: list[tuple[str, bytes]]) -> list[httpx2.Response]:
    base = server.url.removesuffix("/v1")
    async with httpx2.AsyncClient(base_url=base, timeout=PATIENCE, trust_env=False) as http:
        headers = {"content-type": "application/json"}
        return await asyncio.gather(*(http.post(path, content=raw, headers=headers) for path, raw in batch))


def check(answer: httpx2.Response, told: str) -> None:
    """It is an answer, or an error that is documented for something that a client does."""
    assert answer.status_code in (200, 400, 404, 413, 422), told
    if answer.status_code != 200:
        code = answer.json()["error"]["code"]
        assert (answer.status_code, code) in ERRORS, told
        return
    if not answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.json()["choices"], told
        return
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", told
    for event in map(json.loads, events[:-1]):
        # What only the worker can find out may come to light after the first byte.
        assert "error" not in event or (400, event["error"]["code"]) in ERRORS, told


@pytest.mark.timeout(600)
def test_ten_thousand_bodies_and_the_engine_is_alive(server: Server) -> None:
    seen: list[int] = []
    send_batches(server, seen)
    assert len(seen) >= BATCHES * TOGETHER
    # Neither is everything refused at the door, nor was all of it harmless.
    assert seen.count(200) > len(seen) / 20
    assert seen.count(400) > len(seen) / 5
    answer = server.client().chat.completions.create(
        model="atlas:pirate",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=50,
    )
    assert answer.choices[0].message.content == "Arr! The capital of France be Paris."
    assert len([line for line in server.lines if " takes atlas" in line]) == 1, "the worker was replaced"
    assert not [line for line in server.lines if "Traceback" in line]
    assert (Path("/proc") / str(server.worker("atlas"))).exists() or not Path("/proc").exists()
