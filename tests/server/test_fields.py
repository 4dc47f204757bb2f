"""Every field is applied or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel

from mlx_roster.core import Sampling, Text, Tokens, Tools
from mlx_roster.errors import InvalidRequest, UnsupportedContent, UnsupportedParameter
from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.parse import parse
from mlx_roster.server.openai.schema import ChatRequest, TextRequest

USER = {"role": "user", "content": "hi"}
BIG = 2**31


def chat(**fields: Any) -> tuple[ChatRequest, list[str]]:
    return parse(ChatRequest, {"messages": [USER], **fields}, strict_fields=False, n_limit=8)


def text(prompt: Any = "hi", **fields: Any) -> TextRequest:
    return parse(TextRequest, {"prompt": prompt, **fields}, strict_fields=False, n_limit=8)[0]


def template(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return chat(messages=list(messages))[0].prompts[0].messages


@pytest.mark.parametrize("name", sorted(INERT))
def test_inert_fields_are_accepted(name: str) -> None:
    assert chat(**{name: "whatever"}) == chat()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", ["something", 7, {"a": 1}, [], False])
def test_what_is_served_nowhere_is_refused_by_name(name: str, value: Any) -> None:
    for schema in (ChatRequest, TextRequest):
        with pytest.raises(UnsupportedParameter) as caught:
            parse(schema, {name: value}, strict_fields=False, n_limit=8)
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("adapter", "adapters"),
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("temprature", "temperature"),
        ("Temperature", "temperature"),
        ("repeat_penalty", "repetition_penalty"),
        ("stops", "stop"),
    ],
)
def test_a_near_miss_is_refused_with_a_suggestion(sent: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match=f"did you mean {meant}\\?") as caught:
        chat(**{sent: 1})
    assert caught.value.param == sent


def test_unknown_fields_are_named_and_refused_only_where_that_is_asked_for() -> None:
    body = {"messages": [USER], "guided_json": {}, "mirostat": 2}
    assert parse(ChatRequest, body, strict_fields=False, n_limit=8)[1] == ["guided_json", "mirostat"]
    with pytest.raises(InvalidRequest, match="guided_json,mirostat") as caught:
        parse(ChatRequest, body, strict_fields=True, n_limit=8)
    assert caught.value.param == "guided_json"


def test_a_flood_of_unknown_fields_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than 32 unknown fields"):
        chat(**{f"zz{number}": 1 for number in range(10_000)})


def test_another_routes_field_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt is not a field of this route"):
        chat(prompt="x")
    with pytest.raises(InvalidRequest, match="messages is not a field of this route"):
        text(messages=[USER])


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ({}, "messages"),
        (["hi"], "messages[0]"),
        ([USER, {}], "messages[1].role"),
        ([{"role": None}], "messages[0].role"),
        ([{"role": "wizard"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": {}}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0].function.name"),
        ([{"role": "tool", "content": "x", "tool_call_id": 5}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x", "extra": 2**64}], "messages[0]"),
    ],
)
def test_wrong_messages_are_refused_by_their_path(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=messages)
    assert caught.value.param == param


def test_what_goes_to_a_template_has_a_bottom() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"x": deep}
    for message in (
        {"role": "user", "content": "x", "extra": deep},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]},
    ):
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            chat(messages=[message])


@pytest.mark.parametrize("arguments", [5, True, ["x"]])
def test_wrong_arguments_are_refused_by_their_path(arguments: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}])
    assert caught.value.param == "messages[0].tool_calls[0].function.arguments"
    assert caught.value.message == f"{caught.value.param} must be an object, or one as a string"


def test_null_in_a_call_is_the_same_as_leaving_it_out() -> None:
    call = {"function": {"name": "f"}}
    nulls = {"id": None, "type": None, "function": {"name": "f", "arguments": None}}
    told = template({"role": "assistant", "tool_calls": [nulls]})
    assert told == template({"role": "assistant", "tool_calls": [call]})
    assert told[0]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": ""}}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    choice = {"type": None, "function": {"name": "f"}}
    assert chat(tools=tools, tool_choice=choice)[0].tools_offered == Tools(tuple(tools), "named", "f")


@pytest.mark.parametrize("schema", [ChatRequest, TextRequest])
def test_no_form_of_a_union_has_a_name_of_its_own_in_a_path(schema: type[BaseModel]) -> None:
    """Forms are told apart by tags in angle brackets: those of a plain union would be named in errors."""

    def kinds(node: object) -> set[str]:
        match node:
            case dict():
                return {str(node.get("type"))}.union(*map(kinds, node.values()))
            case list() | tuple():
                return set().union(*map(kinds, node))
        return set()

    found = kinds(schema.__pydantic_core_schema__)
    assert "tagged-union" in found
    assert "union" not in found


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video"])
def test_parts_that_are_not_text_are_unsupported_content(kind: str) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "http://example.org/"}}]
    with pytest.raises(UnsupportedContent) as caught:
        chat(messages=[USER, {"role": "user", "content": parts}])
    assert caught.value.param == "messages[1].content[1].type"


def test_messages_reach_the_template_as_it_knows_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    assert template(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user"},
    ) == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("", [Text("")]),
        ("hi", [Text("hi")]),
        (["a", ""], [Text("a"), Text("")]),
        ([1, 0], [Tokens([1, 0])]),
        ([[1], [2, 3]], [Tokens([1]), Tokens([2, 3])]),
    ],
)
def test_prompts_of_every_form(prompt: Any, meant: list[Text | Tokens]) -> None:
    assert text(prompt).prompts == meant


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ({}, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([None], "prompt[0]"),
        ([True], "prompt[0]"),
        ([1.0], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([BIG], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        ([[1], [2, "a"]], "prompt[1][1]"),
        (["a"] * 129, "prompt"),
        ([[1]] * 129, "prompt"),
    ],
)
def test_wrong_prompts_are_refused_by_their_path(prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text(prompt)
    assert caught.value.param == param


def test_stream_options_need_a_stream() -> None:
    for fields in ({}, {"stream": False}, {"stream": None}):
        with pytest.raises(InvalidRequest, match="stream") as caught:
            chat(stream_options={"include_usage": True}, **fields)
        assert caught.value.param == "stream_options"
    assert chat(stream_options={"include_usage": True}, stream=True)[0].include_usage
    assert not chat(stream_options={"include_usage": None}, stream=True)[0].include_usage
    with pytest.raises(InvalidRequest) as caught:
        chat(stream_options={"include_usages": True}, stream=True)
    assert caught.value.param == "stream_options.include_usages"
    with pytest.raises(InvalidRequest) as caught:
        chat(stream_options={"include_usage": 1}, stream=True)
    assert caught.value.param == "stream_options.include_usage"


def test_unknown_stream_options_are_named() -> None:
    options = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": True, "zz": None}
    body = {"messages": [USER], "stream": True, "mirostat": 2, "stream_options": options}
    request, unknown = parse(ChatRequest, body, strict_fields=False, n_limit=8)
    assert request.include_usage
    assert unknown == ["mirostat", "stream_options.include_obfuscation", "stream_options.continuous_usage_stats"]
    del body["mirostat"]
    with pytest.raises(InvalidRequest, match=r"stream_options\.include_obfuscation") as caught:
        parse(ChatRequest, body, strict_fields=True, n_limit=8)
    assert caught.value.param == "stream_options.include_obfuscation"
    with pytest.raises(InvalidRequest, match="more than 32 unknown fields"):
        chat(stream=True, stream_options={f"zz{number}": 1 for number in range(10_000)})


@pytest.mark.parametrize(
    ("said", "seconds"), [("90s", 90), ("15m", 900), ("1.5 h", 5400), ("0s", 0), ("never", math.inf)]
)
def test_keep_alive_may_be_a_duration(said: str, seconds: float) -> None:
    assert chat(keep_alive=said)[0].keep_alive == seconds


def test_both_names_of_the_token_limit() -> None:
    def limit(**fields: int) -> int:
        return chat(**fields)[0].generations({"max_tokens": 9})[0].max_tokens

    assert limit() == 9
    assert limit(max_tokens=5) == limit(max_completion_tokens=5) == limit(max_tokens=5, max_completion_tokens=5) == 5
    with pytest.raises(InvalidRequest) as caught:
        limit(max_tokens=5, max_completion_tokens=6)
    assert caught.value.param == "max_completion_tokens"


def test_defaults_come_after_the_request_and_before_the_built_in_ones() -> None:
    defaults = {"temperature": 0.3, "top_k": 5.0, "stop": ("y",), "xtc_threshold": 0.2}
    [generation] = text(top_k=0, seed=3, stop="x").generations(defaults)
    assert generation.sampling == Sampling(temperature=0.3, top_k=0, xtc_threshold=0.2, seed=3)
    assert generation.max_tokens == 100
    assert generation.stop == ("x",)
    [generation] = text(temperature=0).generations(defaults)
    assert generation.sampling == Sampling(temperature=0, top_k=5, xtc_threshold=0.2)
    assert type(generation.sampling.top_k) is int
    assert generation.stop == ("y",)
    assert text(stop=[]).generations(defaults)[0].stop == ()
