"""Thoughts first, which may be anything, then what was asked for."""

from __future__ import annotations

import pytest

from mlx_roster.core import Tools
from mlx_roster.engine.grammar import Grammars
from tests.engine.constrained import END, ENDING, MARKERS, TOOLS, Walk, calling, generation, tokenizer

SCHEMA = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false}'


@pytest.fixture(scope="module")
def thinking() -> Grammars:
    return Grammars(tokenizer(*MARKERS, parser="json_tools"), 320)


@pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
def test_begun_by_the_prompt(thinking: Grammars, opened: str) -> None:
    walk = Walk(thinking, generation(SCHEMA), f"hello{opened}")
    assert len(walk.allowed()) > 250
    # The answer cannot be left out, nor a call be made before thoughts have ended.
    assert not walk.names() & {END, ENDING, "<tool_call>"}
    walk.say('not {JSON "at all</think>')
    assert "Ċ" in walk.names()
    assert "h" not in walk.names()
    walk.say('\n\n{"a": 1}')
    assert walk.names() == {END, ENDING}


def test_begun_by_the_model(thinking: Grammars) -> None:
    walk = Walk(thinking, generation(SCHEMA))
    assert {"<think>", "{"} <= walk.names()
    assert "h" not in walk.names()
    walk.say('<think>hm</think>{"a":1}')
    assert walk.names() == {END, ENDING}


def test_only_at_the_beginning(thinking: Grammars) -> None:
    walk = Walk(thinking, generation(SCHEMA))
    walk.say("\n")
    assert "<think>" not in walk.names()
    walk = Walk(thinking, generation(SCHEMA))
    walk.say("<think></think>")
    assert "<think>" not in walk.names()


@pytest.mark.parametrize("closed", ["<think></think>", "<think>\n\n</think>\n\n"])
def test_ended_by_the_prompt(thinking: Grammars, closed: str) -> None:
    walk = Walk(thinking, generation(SCHEMA), f"hello{closed}")
    assert "<think>" not in walk.names()
    assert "{" in walk.names()


def test_of_an_earlier_turn(thinking: Grammars) -> None:
    walk = Walk(thinking, generation(SCHEMA), "<think>hm</think>hello")
    assert {"<think>", "{"} <= walk.names()


def test_markers_of_several_tokens() -> None:
    words = tokenizer("<|channel>", "<channel|>")
    assert len(words.think_start_tokens) > 1
    grammars = Grammars(words, 320)
    walk = Walk(grammars, generation(SCHEMA))
    walk.say('<|channel>thought\nhm<channel|>{"a":1}')
    assert walk.names() == {END, ENDING}
    walk = Walk(grammars, generation(SCHEMA), "<|channel>thought\n")
    walk.say('hm<channel|>{"a":1}')
    assert walk.names() == {END, ENDING}


def test_before_calls(thinking: Grammars) -> None:
    walk = Walk(thinking, calling(Tools(TOOLS, "named", "y")), "<think>")
    walk.say('I call</think>\n\n<tool_call>\n{"name": "y", "arguments": {}}\n</tool_call>')
    assert {END, ENDING} <= walk.names()


def test_the_end_of_thoughts_is_all_of_its_tokens() -> None:
    words = tokenizer("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")
    assert len(words.think_end_tokens) > 1
    walk = Walk(Grammars(words, 320), generation(SCHEMA), "<|open|>think<|sep|>")
    walk.say("hm<|close|>thin<|close|>")
    assert "h" in walk.names()
    walk.say('<|close|>think<|sep|>{"a":1}')
    assert walk.names() == {END, ENDING}
