"""What the two generating routes make of every field: the table behind `test_request_table`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec

USER = {"role": "user", "content": "hi"}
BIG = 2**31
NOT_INTEGERS = ["5", 5.0, 5.5, True, [], {}]
NOT_NUMBERS = ["5", True, [], {}]
NOT_STRINGS = [5, 5.5, True, [], {}]
NOT_BOOLEANS = [0, 1, "true", [], {}]
NOT_OBJECTS = [5, "x", True, []]
NOT_LISTS = [5, "x", True, {}]


@dataclass
class Good:
    """A value that is accepted, beside `others`: what it makes of the Generation, by path, and of the response."""

    value: Any
    makes: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    answered: Callable[[httpx2.Response], bool] = lambda response: True


@dataclass
class Row:
    """One field. `wide` are values out of range, `wrong` those of another type; `others` go with all of them."""

    good: list[Good]
    wide: list[Any]
    wrong: list[Any]
    others: dict[str, Any] = field(default_factory=dict)


def sampled(name: str, good: list[Any], wide: list[Any], wrong: list[Any]) -> dict[str, Row]:
    """A field that is one of `Sampling`, by the same name."""
    return {name: Row([Good(value, {f"sampling.{name}": value}) for value in good], wide, wrong)}


def streamed(response: httpx2.Response) -> bool:
    return response.headers["content-type"].startswith("text/event-stream")


def whole(response: httpx2.Response) -> bool:
    return response.headers["content-type"] == "application/json"


def limit(name: str, *, zero: bool) -> dict[str, Row]:
    good = [Good(value, {"max_tokens": value}) for value in (1, BIG - 1)]
    if zero:
        good.append(Good(0, {"max_tokens": 0, "echo": True}, {"echo": True}))
    return {name: Row(good, [0, -1, BIG], NOT_INTEGERS)}


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
COUNTS = ([0, 1, BIG - 1], [-1, BIG], NOT_INTEGERS)


def formatted(**said: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", **said}}


BOTH: dict[str, Row] = {
    "model": Row(
        [
            Good("atlas", answered=lambda response: response.json()["model"] == "atlas"),
            Good("gpt-4o", answered=lambda response: response.json()["model"] == "atlas"),
            Good(
                "atlas:pirate",
                {"adapter": {"name": "atlas:pirate", "path": "/fake/pirate", "pin": False}},
                answered=lambda response: response.json()["model"] == "atlas:pirate",
            ),
        ],
        [],
        NOT_STRINGS,
    ),
    "adapters": Row(
        [
            Good(
                "pirate",
                {"adapter": {"name": "atlas:pirate", "path": "/fake/pirate", "pin": False}},
                answered=lambda response: response.json()["model"] == "atlas:pirate",
            )
        ],
        [],
        NOT_STRINGS,
    ),
    **sampled("temperature", [0, 1, 2.5, 1e9], [-0.1, -1], NOT_NUMBERS),
    **sampled("top_p", [0.01, 1], [0, -1, 1.01], NOT_NUMBERS),
    **sampled("top_k", *COUNTS),
    **sampled("min_p", [0, 0.5, 1], [-0.1, 1.1], NOT_NUMBERS),
    **sampled("xtc_probability", [0, 0.5, 1], [-0.1, 1.1], NOT_NUMBERS),
    **sampled("xtc_threshold", [0, 0.5], [-0.1, 0.51], NOT_NUMBERS),
    **sampled("repetition_penalty", [0.01, 1, 3.5], [0, -1], NOT_NUMBERS),
    **sampled("repetition_context_size", *COUNTS),
    **sampled("presence_penalty", [-2, 0, 2], [-2.1, 2.1], NOT_NUMBERS),
    **sampled("presence_context_size", *COUNTS),
    **sampled("frequency_penalty", [-2, 0, 2], [-2.1, 2.1], NOT_NUMBERS),
    **sampled("frequency_context_size", *COUNTS),
    "logit_bias": Row(
        [
            Good({}),
            Good({"0": -100, "2147483647": 100}, {"sampling.logit_bias": {"0": -100, str(BIG - 1): 100}}),
            Good({str(n): 1 for n in range(1024)}, {"sampling.logit_bias": {str(n): 1 for n in range(1024)}}),
        ],
        [{"5": 100.1}, {"5": -101}, {"-1": 1}, {str(BIG): 1}, {"05": 1}, {str(n): 1 for n in range(1025)}],
        [5, "x", True, [], {"a": 1}, {"5": "1"}, {"5": None}, {"5": True}, {"1.0": 1}],
    ),
    **sampled("seed", [0, -1, 2**63 - 1, -(2**63)], [2**63, -(2**63) - 1], NOT_INTEGERS),
    "min_tokens": Row(
        [
            Good(0),
            Good(100, {"sampling.min_tokens": 100}),
            Good(7, {"sampling.min_tokens": 7, "max_tokens": 7}, {"max_tokens": 7}),
        ],
        # 100 is what max_tokens is by default.
        [-1, 101, BIG],
        NOT_INTEGERS,
    ),
    **sampled("ignore_eos", [True, False], [], NOT_BOOLEANS),
    "stop": Row(
        [
            Good("x", {"stop": ["x"]}),
            Good([], {"stop": []}),
            Good(["x", "\n"], {"stop": ["x", "\n"]}),
            Good(["x"] * 1024, {"stop": ["x"] * 1024}),
            Good(["x" * 512] * 128, {"stop": ["x" * 512] * 128}),
        ],
        ["", [""], ["x"] * 1025, "x" * 513, ["x" * 513], ["x" * 512] * 129],
        [5, True, {}, [5], [None], [["x"]]],
    ),
    "n": Row(
        [
            Good(1),
            Good(8, {"n": 8}, answered=lambda response: len(response.json()["choices"]) == 8),
        ],
        [0, -1, 9, BIG],
        NOT_INTEGERS,
    ),
    "stream": Row([Good(True, answered=streamed), Good(False, answered=whole)], [], NOT_BOOLEANS),
    "stream_options": Row(
        [
            Good({"include_usage": True}, answered=lambda response: '"choices":[],"usage":{' in response.text),
            Good({"include_usage": False}, answered=lambda response: "usage" not in response.text),
            Good({"include_usage": None}, answered=lambda response: "usage" not in response.text),
            Good({}, answered=lambda response: "usage" not in response.text),
        ],
        [{"include_usages": True}],
        [*NOT_OBJECTS, {"include_usage": 1}],
        {"stream": True},
    ),
    "response_format": Row(
        [
            Good({"type": "text"}),
            Good({"type": "json_object"}, {"format": {"schema": None}}),
            Good(formatted(schema=SCHEMA), {"format": {"schema": msgspec.json.encode(SCHEMA).decode()}}),
            Good(formatted(schema={}, strict=True, description="x"), {"format": {"schema": "{}"}}),
            Good(formatted(strict=False), {"format": {"schema": None}}),
        ],
        [
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_object", "more": 1},
            formatted(name="a b"),
            formatted(name="a" * 65),
            formatted(schema={"a": 2**64}),
        ],
        [*NOT_OBJECTS, {"type": 5}, formatted(schema=[]), formatted(schema=True), formatted(strict="yes")],
    ),
    "draft_model": Row([Good("small", {"draft": "small"})], ["large", ""], NOT_STRINGS),
    "num_draft_tokens": Row([Good(value, {"draft_tokens": value}) for value in (0, 3, 16)], [-1, 17], NOT_INTEGERS),
    "keep_alive": Row(
        # What it does to the model: see below.
        [Good(value) for value in (0, 1.5, 3600, "90s", "15m", "1.5 h", "never")],
        [-1, -0.5, "-1s"],
        ["5", "5 weeks", "", "Never", True, [], {}],
    ),
}

TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}
BARE = {"type": "function", "function": {"name": "run"}}
TOOLS = {"tools": [TOOL, BARE]}


def tools(choice: str = "auto", name: str | None = None, *, parallel: bool = True) -> dict[str, Any]:
    return {"tools": {"specs": [TOOL, BARE], "choice": choice, "name": name, "parallel": parallel}}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def function(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


VARIABLES = Row(
    [
        Good({}),
        Good({"enable_thinking": False}, {"prompt.template_args": {"enable_thinking": False}}),
        Good({"persona": {"a": [1]}}, {"prompt.template_args": {"persona": {"a": [1]}}}),
    ],
    [{str(n): 1 for n in range(33)}, {"x": 2**64}],
    NOT_OBJECTS,
)

CHAT: dict[str, Row] = {
    **BOTH,
    **limit("max_tokens", zero=False),
    **limit("max_completion_tokens", zero=False),
    "messages": Row(
        [
            Good([{"role": "user", "content": "yo"}], {"prompt.messages": [{"role": "user", "content": "yo"}]}),
            Good([USER] * 4096, {"prompt.messages": [USER] * 4096}),
        ],
        [[], [USER] * 4097, [{"role": "wizard", "content": "x"}]],
        [*NOT_LISTS, ["hi"], [{}], [{"role": "user", "content": 5}]],
    ),
    "logprobs": Row(
        [
            Good(True, {"logprobs": 0}, answered=lambda r: r.json()["choices"][0]["logprobs"] == {"content": []}),
            Good(False, answered=lambda response: response.json()["choices"][0]["logprobs"] is None),
            Good(1, {"logprobs": 1}, answered=lambda r: r.json()["choices"][0]["logprobs"]["tokens"] == []),
            Good(10, {"logprobs": 10}),
        ],
        [0, -1, 11],
        ["true", 1.0, [], {}],
    ),
    "top_logprobs": Row(
        [Good(0, {"logprobs": 0}), Good(20, {"logprobs": 20})], [-1, 21], NOT_INTEGERS, {"logprobs": True}
    ),
    "tools": Row(
        [
            Good([]),
            Good([TOOL, BARE], tools()),
            Good(
                [{**BARE, "function": {"name": "run", "parameters": None}}],
                {"tools": {"specs": [BARE], "choice": "auto", "name": None, "parallel": True}},
            ),
        ],
        [
            [BARE] * 129,
            [BARE, BARE],
            function(name="a b"),
            function(name=""),
            function(name="a" * 65),
            function(parameters={"a": 2**64}),
            function(more=2**64),
            [{**BARE, "type": "web_search"}],
        ],
        [*NOT_LISTS, ["f"], [{}], [{"function": {"name": "f"}}], function(parameters=[]), function(strict=1)],
    ),
    "tool_choice": Row(
        [
            Good("auto", tools()),
            Good("none"),
            Good("required", tools("required")),
            Good(named("run"), tools("named", "run")),
        ],
        ["always", named("walk"), {"type": "function"}, {**named("run"), "more": 1}],
        [5, True, [], {}, named(5)],
        TOOLS,
    ),
    "parallel_tool_calls": Row([Good(True, tools()), Good(False, tools(parallel=False))], [], NOT_BOOLEANS, TOOLS),
    "chat_template_kwargs": VARIABLES,
    "chat_template_args": VARIABLES,
    "reasoning_effort": Row(
        [
            Good(effort, {"prompt.template_args": {"reasoning_effort": effort}})
            for effort in ("none", "minimal", "low", "medium", "high", "xhigh")
        ],
        ["", "HIGH", "huge"],
        NOT_STRINGS,
    ),
    "role_mapping": Row(
        [Good({}), Good({"user": "U: ", "stop": "\n"}, {"prompt.role_mapping": {"user": "U: ", "stop": "\n"}})],
        [{str(n): "x" for n in range(33)}],
        [*NOT_OBJECTS, {"user": 5}, {"user": None}],
    ),
}

TEXT: dict[str, Row] = {
    **BOTH,
    **limit("max_tokens", zero=True),
    **limit("max_completion_tokens", zero=True),
    "prompt": Row(
        [
            Good("", {"prompt": {"type": "text", "text": ""}}),
            Good("yo", {"prompt": {"type": "text", "text": "yo"}}),
            Good(["yo"], {"prompt": {"type": "text", "text": "yo"}}),
            Good([0, BIG - 1], {"prompt": {"type": "tokens", "ids": [0, BIG - 1]}}),
            Good([[5], [6]], {"prompt": {"type": "tokens", "ids": [5]}}),
            Good(["a"] * 128, {"prompt": {"type": "text", "text": "a"}}),
        ],
        [[], [[]], ["a"] * 129, [[1]] * 129, [-1], [BIG]],
        [5, True, {}, [True], [1.0], [None], [1, "a"], ["a", 1], [[1], "a"], [[1], [2, "a"]]],
    ),
    "logprobs": Row([Good(0, {"logprobs": 0}), Good(10, {"logprobs": 10})], [-1, 11], NOT_INTEGERS),
    "echo": Row([Good(True, {"echo": True}), Good(False)], [], NOT_BOOLEANS),
    "best_of": Row([Good(1), Good(3, {"n": 3}, {"n": 3})], [0, -1, BIG], NOT_INTEGERS),
}

ROUTES: dict[str, tuple[dict[str, Row], dict[str, Any]]] = {
    "/v1/chat/completions": (CHAT, {"messages": [USER]}),
    "/chat/completions": (CHAT, {"messages": [USER]}),
    "/v1/completions": (TEXT, {"prompt": "hi"}),
}
