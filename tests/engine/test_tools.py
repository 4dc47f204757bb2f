"""Calls of functions: every format of mlx-lm's, right, broken and cut off."""

from __future__ import annotations

import json
import pkgutil
import re
from dataclasses import dataclass
from typing import Any

import mlx_lm.tool_parsers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tool_parsers.json_tools import parse_tool_call

from mlx_roster.core import CallDelta, Tools
from mlx_roster.engine.text import Voice
from tests.engine.speech import JSON, THINK, TOOLS, Said, Speech, parser

EVERY = range(10_000)


@dataclass(frozen=True)
class Format:
    """How a parser of mlx-lm's has `weather(city="Zürich", days=3)`, and something that it can make nothing of.

    `special` are the format's special tokens inside of a call.
    """

    right: str
    broken: str | None = "<tool>?"
    special: tuple[str, ...] = ()
    incremental: bool = False


ARGUED = '{"city": "Zürich", "days": 3}'
GLM = Format(
    "weather<arg_key>city</arg_key><arg_value>Zürich</arg_value><arg_key>days</arg_key><arg_value>3</arg_value>",
    # Whatever is not a call, it takes for one.
    broken=None,
)
SECTION = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")

FORMATS = {
    "function_gemma": Format("call:weather{city:<escape>Zürich<escape>,days:3}", special=("<escape>",)),
    "gemma4": Format('call:weather{city:<|"|>Zürich<|"|>,days:3}', special=('<|"|>',)),
    "glm47": GLM,
    "laguna": GLM,
    "json_tools": Format(f'\n{{"name": "weather", "arguments": {ARGUED}}}\n', incremental=True),
    "kimi_k2": Format(
        f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{ARGUED}<|tool_call_end|>", special=SECTION
    ),
    "kimi_k3": Format(
        '<|open|>call tool="weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Zürich<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="integer"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>',
        special=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
    ),
    "longcat": Format(
        "weather<longcat_arg_key>city</longcat_arg_key><longcat_arg_value>Zürich</longcat_arg_value>"
        "<longcat_arg_key>days</longcat_arg_key><longcat_arg_value>3</longcat_arg_value>"
    ),
    "minicpm5": Format('"weather"><param name="city">Zürich</param><param name="days">3</param>', broken="?"),
    "minimax_m2": Format(
        '\n<invoke name="weather">\n<parameter name="city">Zürich</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n'
    ),
    "mistral": Format(f"weather[ARGS]{ARGUED}", special=("[ARGS]",)),
    "muse_spark": Format(
        '<atem:invoke name="weather"><atem:parameter name="city">Zürich</atem:parameter>'
        '<atem:parameter name="days">3</atem:parameter></atem:invoke>'
    ),
    "pythonic": Format('[weather(city="Zürich", days=3)]'),
    "qwen3_coder": Format(
        "\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n"
    ),
}

everywhere = pytest.mark.parametrize("special", [False, True])
each_format = pytest.mark.parametrize("name", FORMATS)


def speech(name: str, text: str, *, special: bool = False, cuts: Any = EVERY) -> Speech:
    marks = parser(name)
    names = [marks["tool_call_start"], marks["tool_call_end"], *FORMATS[name].special]
    return Speech(text, [one for one in names if one], special=special, cuts=cuts, **marks)


def tagged(text: str, before: str = "", after: str = "", **asked: Any) -> Said:
    """The text in the tags of JSON calls."""
    spoken = Speech(f"{before}<tool_call>{text}</tool_call>{after}", cuts=EVERY, **JSON)
    return spoken.said(spoken.voice(TOOLS, **asked))


def test_every_parser_of_mlx_lm_is_tried() -> None:
    assert set(FORMATS) == {module.name for module in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)}


@everywhere
@each_format
def test_call_is_read(name: str, special: bool) -> None:
    marks = parser(name)
    call = marks["tool_call_start"] + FORMATS[name].right + marks["tool_call_end"]
    for cuts in (EVERY, ()):
        spoken = speech(name, f"Well:\n{call}", special=special, cuts=cuts)
        voice = spoken.voice(TOOLS)
        said = spoken.said(voice)
        assert (said.content, said.calls) == ("Well:\n", [("weather", ARGUED)])
        assert voice.called


@everywhere
@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].broken])
def test_malformed_tool_arguments_do_not_abort_the_stream(name: str, special: bool) -> None:
    marks = parser(name)
    broken = f"{marks['tool_call_start']}{FORMATS[name].broken}{marks['tool_call_end']}"
    for cuts in (EVERY, ()):
        spoken = speech(name, f"Well: {broken} and on", special=special, cuts=cuts)
        voice = spoken.voice(TOOLS)
        said = spoken.said(voice)
        assert said == Said(f"Well: {broken} and on")
        assert not voice.called


@everywhere
@each_format
def test_tool_call_cut_by_max_tokens_is_length(name: str, special: bool) -> None:
    """What there is of it is said; the reason is the engine's to tell."""
    text = parser(name)["tool_call_start"] + FORMATS[name].right
    text = text[: text.index("Zür") + 3]
    spoken = speech(name, text, special=special)
    voice = spoken.voice(TOOLS)
    said = spoken.said(voice, ended=False)
    assert not voice.called
    assert not voice.stopped
    if FORMATS[name].incremental:
        assert said == Said("", "", [("weather", '{"city": "Zür')], said.ids)
    else:
        assert said == Said(text)


@each_format
def test_call_that_the_model_ends_without_its_marker_is_read(name: str) -> None:
    spoken = speech(name, parser(name)["tool_call_start"] + FORMATS[name].right)
    assert spoken.said(spoken.voice(TOOLS), ended=True).calls == [("weather", ARGUED)]


@each_format
def test_streamed_and_unstreamed_tool_calls_agree(name: str) -> None:
    """Streamed, a call is said as it comes; unstreamed, its pieces are put together: here, from one long token."""
    marks = parser(name)
    call = marks["tool_call_start"] + FORMATS[name].right + marks["tool_call_end"]
    streamed, whole = (speech(name, call * 2, cuts=cuts) for cuts in (EVERY, ()))
    pieces = streamed.said(streamed.voice(TOOLS))
    assert pieces.key() == whole.said(whole.voice(TOOLS)).key()
    assert pieces.calls == [("weather", ARGUED)] * 2
    assert all(json.loads(arguments) == json.loads(ARGUED) for _, arguments in pieces.calls)


def deltas(spoken: Speech, voice: Voice) -> list[CallDelta]:
    said: list[CallDelta] = []
    for token in spoken.ids:
        voice.add(token)
        said += (voice.aside() or ("", []))[1]
    return said


def test_json_calls_are_streamed_as_they_are_written() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bär"}}\n</tool_call>'
    spoken = Speech(text, cuts=EVERY, **JSON)
    first, *others = deltas(spoken, spoken.voice(TOOLS))
    assert (first.index, first.name, first.arguments) == (0, "weather", "{")
    assert first.id is not None
    assert re.fullmatch(r"call_[0-9a-f]{24}", first.id)
    # The two bytes of one character come together.
    assert [delta.arguments for delta in others] == list('"city": "Bär"}')
    assert {(delta.index, delta.id, delta.name) for delta in others} == {(0, None, None)}


def test_several_calls_have_indices_and_ids_of_their_own() -> None:
    text = '{"name": "now"}</tool_call>\n<tool_call>{"name": "weather", "arguments": {"days": 1}}'
    said = tagged(text, "Look: ", " and\n")
    assert said.calls == [("now", "{}"), ("weather", '{"days": 1}')]
    assert said.content == "Look:  and\n"
    assert len(set(said.ids)) == 2
    between = tagged('{"name": "now"}</tool_call> or <tool_call>{"name": "now"}')
    assert between.content == " or "


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {}}', [("f", "{}")]),
        ('{"name": "f", "arguments": null}', [("f", "{}")]),
        ('{"name": "f"}', [("f", "{}")]),
        ('{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
        ('{"arguments": {"a": 1}, "name": "f"}', [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": "{\\"a\\": \\"b\\"}"}', [("f", '{"a": "b"}')]),
        ('{"name": "f", "arguments": ""}', [("f", "{}")]),
        ('{"type": "function", "x": [1, {"y": true}], "n": -1.5e3, "name": "f"}', [("f", "{}")]),
        ('{"name": "f", "arguments": {"a": 1}, "name": "g", "arguments": {"b": 2}}', [("f", '{"a": 1}')]),
        ('[{"name": "f"}, {"name": "g"}]', [("f", "{}"), ("g", "{}")]),
        ('{"name": "f"}\n{"name": "g"}', [("f", "{}"), ("g", "{}")]),
        ('{"name": "f", "arguments": {"a": "</tool_call> \\" }"}}', [("f", '{"a": "</tool_call> \\" }"}')]),
        # Once said, it stays, and is closed as it is.
        ('{"name": "f", "arguments": {"a": [1}}', [("f", '{"a": [1')]),
        ('{"name": "f", "arguments": {"a": 1}}}', [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": {"a": 1', [("f", '{"a": 1</tool_call>')]),
    ],
)
def test_json_calls_in_all_their_forms(text: str, calls: list[tuple[str, str]]) -> None:
    said = tagged(text)
    assert (said.calls, said.content) == (calls, "")


def test_id_of_the_model_is_kept() -> None:
    assert tagged('{"id": "mine", "name": "f"}').ids == ["mine"]
    name = "kimi_k2"
    spoken = speech(name, parser(name)["tool_call_start"] + FORMATS[name].right + parser(name)["tool_call_end"])
    assert spoken.said(spoken.voice(TOOLS)).ids == ["functions.weather:0"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{",
        "{]",
        '{"name": f}',
        '{"name": 3}',
        '{"name": ""}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": 3}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": "hello"}',
        "{'name': 'f'}",
        '{"name" "f"}',
        "[3]",
        "[]",
    ],
)
def test_json_that_is_no_call_is_text(text: str) -> None:
    said = tagged(text, after=" bye")
    assert said == Said(f"<tool_call>{text}</tool_call> bye")


@pytest.mark.parametrize("returned", [3, [], {}, {"name": 3}, {"name": "f", "arguments": {"a": {1, 2}}}, None])
def test_parser_that_returns_nonsense_has_found_no_call(returned: Any) -> None:
    def parse(text: str, specs: Any) -> Any:
        return returned

    text = "<c>x</c>y"
    spoken = Speech(text, cuts=EVERY, tool_parser=parse, tool_call_start="<c>", tool_call_end="</c>")
    assert spoken.said(spoken.voice(TOOLS)) == Said(text)


def test_parser_is_told_of_the_functions() -> None:
    text = (
        "<tool_call><function=weather><parameter=city>3</parameter><parameter=days>3</parameter></function></tool_call>"
    )
    spoken = Speech(text, cuts=EVERY, **parser("qwen3_coder"))
    assert spoken.said(spoken.voice(TOOLS)).calls == [("weather", '{"city": "3", "days": 3}')]


@pytest.mark.parametrize("name", ["json_tools", "pythonic", "kimi_k2"])
def test_without_parallel_calls_the_first_is_the_last(name: str) -> None:
    marks = parser(name)
    call = marks["tool_call_start"] + FORMATS[name].right + marks["tool_call_end"]
    for cuts in (EVERY, ()):
        spoken = speech(name, f"{call}{call} more", cuts=cuts)
        voice = spoken.voice(Tools(TOOLS.specs, parallel=False))
        said = spoken.said(voice)
        assert (said.calls, said.content) == ([("weather", ARGUED)], "")
        assert voice.stopped
        assert voice.called


def test_of_several_calls_in_one_text_only_the_first_is_passed_on_without_parallel() -> None:
    spoken = Speech("[TOOL_CALLS]now[ARGS]{}now[ARGS]{}", cuts=EVERY, **parser("mistral"))
    voice = spoken.voice(Tools(TOOLS.specs, parallel=False))
    assert spoken.said(voice).calls == [("now", "{}")]
    spoken = Speech('[TOOL_CALLS][{"name": "now"}, {"name": "weather"}]', cuts=EVERY, **parser("mistral"))
    voice = spoken.voice(Tools(TOOLS.specs, parallel=False))
    assert spoken.said(voice).calls == [("now", "{}")]
    assert voice.stopped


def test_mistral_has_short_ids_and_its_json_is_streamed() -> None:
    text = '[TOOL_CALLS] [{"name": "weather", "arguments": {"days": 3}}, {"name": "now", "id": "abcdefghi"}]'
    spoken = Speech(text, cuts=EVERY, **parser("mistral"))
    assert len(deltas(spoken, spoken.voice(TOOLS))) > 5
    said = spoken.said(spoken.voice(TOOLS), ended=False)
    assert (said.content, said.calls) == ("", [("weather", '{"days": 3}'), ("now", "{}")])
    assert re.fullmatch("[0-9a-z]{9}", said.ids[0])
    assert said.ids[1] == "abcdefghi"


def test_call_ends_the_reasoning_that_nothing_else_ended() -> None:
    text = '<think>hm\n<tool_call>{"name": "now"}</tool_call>\nDone'
    spoken = Speech(text, THINK, cuts=EVERY, **JSON)
    assert spoken.said(spoken.voice(TOOLS)).key() == ("\nDone", "hm", [("now", "{}")])


@pytest.mark.parametrize("name", ["json_tools", "qwen3_coder"])
def test_marker_that_the_reasoning_only_speaks_of_stays_there(name: str) -> None:
    text = "<think>I may write <tool_call> now.</think>Hello"
    spoken = Speech(text, THINK, cuts=EVERY, **parser(name))
    assert spoken.said(spoken.voice(TOOLS)).key() == ("Hello", "I may write <tool_call> now.", [])


FORCED = Tools(TOOLS.specs, "required")


@pytest.mark.parametrize("before", ["", " \n", "<think>hm</think>\n\n", "\n<think>\nhm\n</think> \n"])
@pytest.mark.parametrize("cuts", [EVERY, ()])
def test_forced_calls_without_markers_are_an_array(before: str, cuts: Any) -> None:
    calls = '[{"name": "weather", "arguments": {"city": "<think>[TOOL_CALLS]"}}, {"name": "now", "arguments": {}}]'
    spoken = Speech(before + calls, THINK, cuts=cuts, **parser("pythonic"))
    voice = spoken.voice(FORCED)
    said = spoken.said(voice)
    assert said.calls == [("weather", '{"city": "<think>[TOOL_CALLS]"}'), ("now", "{}")]
    assert (said.content, said.reasoning) == ("", "hm" if "hm" in before else "")
    assert voice.called


def test_forced_calls_are_streamed_and_may_be_cut_off() -> None:
    spoken = Speech('[{"name": "weather", "arguments": {"days"', cuts=EVERY, **parser("qwen3_coder"))
    voice = spoken.voice(FORCED)
    assert spoken.said(voice, ended=False).calls == [("weather", '{"days"')]
    assert not voice.called


def test_forced_calls_in_tags_are_read_like_others() -> None:
    spoken = Speech('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', cuts=EVERY, **JSON)
    said = spoken.said(spoken.voice(Tools(TOOLS.specs, "named", "now")))
    assert (said.calls, said.content) == ([("now", "{}")], "")


TAGGED = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<think>hm</think> \n{TAGGED}", ""),
        (f" {TAGGED} \n {TAGGED}\n ", ""),
        (f"\n <think>hm</think>\n\n \n{TAGGED}", ""),
        (f" Look: \n{TAGGED}\n", " Look: \n"),
        (f"{TAGGED}\n So.", "\n So."),
        # What is no call keeps what comes before it, but for the newlines after the reasoning.
        (f"{TAGGED}\n <tool_call>{{</tool_call>", "\n <tool_call>{</tool_call>"),
        ("<think>hm</think>\n <tool_call>{</tool_call>", " <tool_call>{</tool_call>"),
    ],
)
def test_blanks_beside_calls_alone_are_no_content(text: str, content: str, special: bool) -> None:
    spoken = Speech(text, (*THINK, "<tool_call>", "</tool_call>"), special=special, cuts=EVERY, **JSON)
    said = spoken.said(spoken.voice(TOOLS))
    assert said.content == content
    assert len(said.calls) == text.count(TAGGED)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("thought", ["", "<think>hm</think>\n"])
def test_forced_calls_that_are_cut_off_anywhere_are_no_content(thought: str, special: bool) -> None:
    text = f"{thought} {TAGGED}\n{TAGGED}"
    names = (*THINK, "<tool_call>", "</tool_call>")
    for end in range(len(thought), len(text)):
        spoken = Speech(text[:end], names, special=special, cuts=EVERY, **JSON)
        said = spoken.said(spoken.voice(FORCED), ended=False)
        assert (said.content, said.reasoning) == ("", "hm" if thought else "")
    assert len(said.calls) == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    name=st.text(min_size=1, max_size=8),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    swapped=st.booleans(),
)
def test_any_arguments_come_out_as_the_model_wrote_them(
    arguments: dict[str, Any], name: str, indent: int | None, ascii_only: bool, swapped: bool
) -> None:
    call = {"arguments": arguments, "name": name} if swapped else {"name": name, "arguments": arguments}
    text = json.dumps(call, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace").decode()
    said = tagged(text)
    assert said.content == ""
    ((_, written),) = said.calls
    assert written in text
    assert json.loads(written) == parse_tool_call(text)["arguments"]


def test_long_arguments_cost_what_they_are_long() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": "' + "x" * 200_000 + '"}}</tool_call>'
    spoken = Speech(text, cuts=range(0, len(text), 4), **JSON)
    ((_, arguments),) = spoken.said(spoken.voice(TOOLS)).calls
    assert len(arguments) > 200_000
