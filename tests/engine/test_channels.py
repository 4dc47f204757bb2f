"""Answer, reasoning and calls in one text, told apart by the markers of the model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.core import Generation, Text, Tokens, Tools
from mlx_roster.engine.text import PartedStream, TextStream, Voices
from tests.engine.speech import CALL, JSON, THINK, TOOLS, Said, Speech

BOTH = [*THINK, *CALL]


def every(text: str) -> range:
    """Cuts between all bytes."""
    return range(len(text.encode()))


def say(text: str, *, special: bool = False, names: Any = BOTH, **asked: Any) -> Said:
    speech = Speech(text, names, special=special, cuts=every(text), **JSON)
    return speech.said(speech.voice(**asked))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<think>\nhm, 你好\n</think>\n\nHello", "Hello", "hm, 你好"),
        ("<think>hm</think>Hello\n", "Hello\n", "hm"),
        ("\n<think>\n\n</think>\n\nHello", "Hello", ""),
        ("<think>a\n\nb\n\n</think>\n\n  Hello", "  Hello", "a\n\nb"),
        ("Hello\n\nworld\n", "Hello\n\nworld\n", ""),
        ("\nHello", "\nHello", ""),
        ("\n\n", "\n\n", ""),
        # Cut off: all that there is belongs to the reasoning.
        ("<think>\nhm\n", "", "hm\n"),
        ("<think>hm</thi", "", "hm</thi"),
        # An end that nothing began is a word.
        ("Hello <thin", "Hello <thin", ""),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, content: str, reasoning: str, special: bool) -> None:
    said = say(text, special=special)
    assert (said.content, said.reasoning) == (content, reasoning)


def test_a_marker_in_the_middle_of_an_answer_is_a_word() -> None:
    text = "Write <think> and </think> around it"
    assert say(text).content == text
    said = say(text, special=True)
    assert (said.content, said.reasoning) == ("Write  around it", " and ")


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        (["<think>"], True),
        (["a", "<think>", "a"], False),
        (["<think>", "</think>"], False),
        (["<think>", *"aa" * 20], False),
        ([], False),
    ],
)
def test_prompt_that_opens_the_reasoning_is_gone_on_with(prompt: list[str], thinks: bool) -> None:
    text = "hm</think>Hello"
    speech = Speech(text, THINK, special=True, cuts=every(text))
    said = speech.said(speech.voice(prompt=[speech.id_of(name) for name in prompt]))
    assert (said.content, said.reasoning) == (("Hello", "hm") if thinks else ("hmHello", ""))


def test_reasoning_tokens_are_counted_up_to_the_end_of_the_marker() -> None:
    text = "<think>abc</think>de"
    speech = Speech(text, THINK, special=True, cuts=every(text))
    voice = speech.voice()
    counts = []
    for token in speech.ids:
        voice.add(token)
        counts.append(voice.reasoning)
    assert counts == [1, 2, 3, 4, 5, 5, 5]
    loose = Speech(text, THINK, cuts=every(text))
    voice = loose.voice()
    loose.said(voice)
    assert voice.reasoning == len("<think>abc</think>")


def test_stop_strings_are_for_the_answer_only() -> None:
    said = say(
        '<think>one END two</think>three<tool_call>{"name": "now", "arguments": {"a": "END"}}</tool_call>EN',
        tools=TOOLS,
        stop=("END",),
    )
    assert said == Said("threeEN", "one END two", [("now", '{"a": "END"}')], said.ids)
    text = "<think>END</think>one END two"
    speech = Speech(text, THINK, cuts=every(text))
    voice = speech.voice(stop=("END",))
    assert speech.said(voice).content == "one "
    assert voice.stopped
    assert not voice.called


def test_min_tokens_keep_stop_strings_from_being_looked_for() -> None:
    text = "<think>a</think>END and END"
    speech = Speech(text, THINK, special=True, cuts=every(text))
    assert speech.said(speech.voice(stop=("END",), min_tokens=5)).content == "END and "
    assert speech.said(speech.voice(stop=("END",), min_tokens=3)).content == ""


def test_without_tools_calls_stay_text() -> None:
    text = 'Hi\n<tool_call>{"name": "now"}</tool_call>'
    assert say(text) == Said(text)
    assert say(text, special=True) == Said('Hi\n{"name": "now"}')


def test_special_tokens_that_are_no_markers_are_left_out() -> None:
    text = "<think>a<eot>b</think>c<eot>d"
    said = say(text, special=True, names=[*BOTH, "<eot>"])
    assert (said.content, said.reasoning) == ("cd", "ab")


def test_plain_models_and_plain_completions_take_the_quick_way() -> None:
    plain, thoughtful, calling = Speech("a"), Speech("a", THINK), Speech("a", CALL, **JSON)
    assert isinstance(plain.voice(), TextStream)
    assert isinstance(calling.voice(), TextStream)
    assert isinstance(thoughtful.voice(), PartedStream)
    assert isinstance(calling.voice(tools=TOOLS), PartedStream)
    for prompt in (Text("a"), Tokens([1])):
        assert isinstance(Voices(thoughtful.tokenizer)(Generation(prompt, 5), [1]), TextStream)


def test_plain_voice_has_no_aside() -> None:
    voice = Speech("a").voice()
    assert (voice.aside(), voice.reasoning, voice.called) == (None, 0, False)


def test_aside_is_what_came_since_it_was_last_asked_for() -> None:
    text = "<think>ab</think>c"
    speech = Speech(text, THINK, special=True, cuts=every(text))
    voice = speech.voice()
    asides = []
    for token in speech.ids:
        voice.add(token)
        asides.append(voice.aside())
    assert asides == [None, ("a", []), ("b", []), None, None]


XTML = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]


@pytest.mark.parametrize("special", [False, True])
def test_markers_of_several_tokens(special: bool) -> None:
    gemma = "<|channel>thought\nhm<channel|>Hello"
    said = say(gemma, names=["<|channel>", "<channel|>"], special=special)
    assert (said.content, said.reasoning) == ("Hello", "hm")
    xtml = "<|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>Hello<|close|>response<|sep|>"
    said = say(xtml + "<|close|>message<|sep|>", names=XTML, special=special)
    assert (said.content, said.reasoning) == ("Hello", "hm")


def test_formats_that_begin_with_a_header() -> None:
    transitions = {
        "header": [("to=self<|message|>", "reasoning"), ("to=user<|message|>", "normal")],
        "reasoning": [("<|eom|>", "header")],
        "normal": [("<|eom|>", "header"), ("<|eot|>", "normal")],
    }
    form = {"initial_state": "header", "transitions": transitions}
    text = " to=self<|message|>hm<|eom|><|start|>assistant to=user<|message|>Hello<|eot|>"
    names = ["<|message|>", "<|eom|>", "<|eot|>", "<|start|>"]
    for special in (False, True):
        speech = Speech(text, names, special=special, cuts=every(text), response_format=form)
        said = speech.said(speech.voice())
        assert (said.content, said.reasoning) == ("Hello", "hm")


FRAGMENTS = [
    *BOTH,
    "\n",
    "\n\n",
    "<",
    "</t",
    "<tool_",
    "think",
    "é🎉",
    '{"name": "now"',
    "}",
    '{"name": "weather", "arguments": {"city": "Zürich 🎉", "days": [1, {"a": "}\\""}]}}',
    '[{"arguments": {}, "name": "now"}, {"name": "now"}]',
    '{"name": "now", "arguments": "{\\"a\\": 1}"}',
    '{"name": "now", "arguments": {"a": [1}}',
    "STOP",
    "ST",
    "<eot>",
]


@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    cuts=st.lists(st.integers(1, 400), max_size=40),
    special=st.booleans(),
    tools=st.sampled_from([None, TOOLS, Tools(TOOLS.specs, parallel=False), Tools(TOOLS.specs, "required")]),
    stop=st.sampled_from([(), ("STOP",), ("\n", "<")]),
    ended=st.booleans(),
)
def test_what_is_said_does_not_depend_on_how_the_text_is_cut(
    fragments: list[str],
    cuts: list[int],
    special: bool,
    tools: Tools | None,
    stop: tuple[str, ...],
    ended: bool,
) -> None:
    text = "".join(fragments)
    said = []
    for places in ([], cuts, every(text)):
        speech = Speech(text, [*BOTH, "<eot>"], special=special, cuts=places, **JSON)
        said.append(speech.said(speech.voice(tools, stop), ended).key())
    assert said[0] == said[1] == said[2]


@given(fragments=st.lists(st.sampled_from(["a", "\n", "<", "<thi", "</", "<tool", "{", "é"]), max_size=12))
def test_text_without_a_whole_marker_is_all_answer(fragments: list[str]) -> None:
    text = "".join(fragments)
    assert say(text, tools=TOOLS) == Said(text)
