"""Calls that must be made: their grammar, and what a client is told of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_roster.core import Generation, Tools
from mlx_roster.engine.grammar import Grammars
from mlx_roster.engine.text import Voices
from mlx_roster.engine.toolforms import forced_form
from tests.engine.constrained import (
    END,
    ENDING,
    MARKERS,
    TOOLS,
    Walk,
    at_random,
    calling,
    fits,
    generation,
    tokenizer,
)


@pytest.fixture(scope="module")
def thinking() -> Grammars:
    return Grammars(tokenizer(*MARKERS, parser="json_tools"), 320)


FORMS = {
    "tagged": lambda: tokenizer(*MARKERS, parser="json_tools"),
    "tagged, in words": lambda: tokenizer(parser="json_tools"),
    "mistral": lambda: tokenizer("[TOOL_CALLS]", "[ARGS]", parser="mistral"),
    "mistral, older": lambda: tokenizer("[TOOL_CALLS]", parser="mistral"),
    "array": tokenizer,
    "array, of a format not known here": lambda: tokenizer(
        "<|tool_call_start|>", "<|tool_call_end|>", parser="pythonic"
    ),
}


@pytest.fixture(scope="module", params=FORMS)
def caller(request: pytest.FixtureRequest) -> Grammars:
    words = FORMS[request.param]()
    assert forced_form(words) == request.param.split(",")[0]
    return Grammars(words, 320)


def heard(words: Any, wanted: Generation, tokens: list[int]) -> list[tuple[str, Any]]:
    """The calls that a client is told of."""
    voice = Voices(words)(wanted, [])
    said = "".join(voice.add(token) for token in tokens if token not in words.eos_token_ids) + voice.finish()
    assert not said
    aside = voice.aside()
    assert aside is not None
    return [(call.name or "", json.loads(call.arguments)) for call in aside[1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "tools", [Tools(TOOLS, "required"), Tools(TOOLS, "required", parallel=False), Tools(TOOLS, "named", "x")], ids=str
)
def test_calls_that_are_demanded_are_made(caller: Grammars, tools: Tools, seed: int) -> None:
    walk = Walk(caller, calling(tools))
    walk.finish(at_random(walk.tokenizer, seed, 120))
    calls = heard(walk.tokenizer, calling(tools), walk.drawn)
    assert len(calls) == 1 or (calls and tools.parallel)
    for name, arguments in calls:
        assert name == "x" or tools.choice == "required"
        spec = next(spec["function"] for spec in TOOLS if spec["function"]["name"] == name)
        fits(json.dumps(arguments), {"type": "object"})
        fits(json.dumps(arguments), spec.get("parameters", {}))


def test_several_calls_are_allowed_in_parallel_only(thinking: Grammars) -> None:
    call = '<tool_call>\n{"name": "y", "arguments": {}}\n</tool_call>'
    walk = Walk(thinking, calling(Tools(TOOLS, "required")))
    walk.say(f"{call}\n{call}")
    assert {END, "Ċ"} <= walk.names()
    walk = Walk(thinking, calling(Tools(TOOLS, "required", parallel=False)))
    walk.say(call)
    assert walk.names() == {END, ENDING}


def test_a_formatted_answer_may_be_a_call_where_there_are_functions(thinking: Grammars) -> None:
    wanted = generation('{"const": 1}', tools=Tools(TOOLS))
    walk = Walk(thinking, wanted)
    assert {"1", "<tool_call>"} <= walk.names()
    walk.say("<tool_call>")
    # Only a call can follow, of one of these functions; its arguments are free where none is demanded.
    assert walk.names() == {"Ċ"}
    call = '\n{"name": "x", "arguments": {"what": [1]}}\n</tool_call>'
    walk.say(call)
    assert walk.names() == {END, ENDING, "Ċ"}
    walk.say(f"\n<tool_call>{call}")
    assert heard(walk.tokenizer, wanted, walk.drawn) == [("x", {"what": [1]})] * 2
    walk = Walk(thinking, wanted)
    walk.say("\n1")
    assert walk.names() == {END, ENDING}
    walk = Walk(thinking, generation('{"const": 1}'))
    assert "<tool_call>" not in walk.names()


@pytest.mark.parametrize("form", ["tagged", "mistral", "mistral, older"])
@pytest.mark.parametrize("seed", range(6))
def test_a_formatted_answer_beside_functions_is_the_format_or_calls(form: str, seed: int) -> None:
    wanted = generation('{"const": 1}', tools=Tools(TOOLS, parallel=False))
    walk = Walk(Grammars(FORMS[form](), 320), wanted)
    marker = walk.tokenizer.convert_tokens_to_ids(walk.tokenizer.tool_call_start)
    if seed % 2:
        walk.draw(marker)
    text = walk.finish(at_random(walk.tokenizer, seed, 120))
    if marker in walk.drawn:
        ((name, arguments),) = heard(walk.tokenizer, wanted, walk.drawn)
        assert name in ("x", "y", "any")
        assert isinstance(arguments, dict)
    else:
        assert json.loads(text) == 1


def test_a_formatted_answer_may_be_a_call_in_a_form_not_known_here() -> None:
    wanted = generation('{"const": 1}', tools=Tools(TOOLS))
    walk = Walk(Grammars(FORMS["array, of a format not known here"](), 320), wanted)
    assert walk.names() == {"1", "<|tool_call_start|>"}
    walk.say("<|tool_call_start|>")
    assert len(walk.allowed()) == walk.size


@pytest.mark.parametrize("parallel", [True, False])
def test_a_function_that_is_named_is_called_once(parallel: bool) -> None:
    words = tokenizer("<tool_call>", "</tool_call>", parser="json_tools")
    walk = Walk(Grammars(words, 320), calling(Tools(TOOLS, "named", "y", parallel)))
    assert walk.names() == {"<tool_call>"}
    walk.say('<tool_call>\n{"name": "')
    assert walk.names() == {"y"}
    walk.say('y", "arguments": {}}\n</tool_call>')
    assert walk.names() == {END, ENDING}
