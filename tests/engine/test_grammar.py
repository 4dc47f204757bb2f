"""Structured output: whatever a model would like to say, what it says fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from transformers import PreTrainedTokenizerBase

import mlx_roster.demo
from mlx_roster.core import Chat, Generation, Tools
from mlx_roster.engine.grammar import Grammars
from mlx_roster.engine.text import Voices
from mlx_roster.engine.toolforms import forced_form
from mlx_roster.errors import InvalidRequest
from tests.engine.constrained import END, ENDING, Walk, at_random, calling, generation, greedily, tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "string", "format": "date"},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    {"type": "object", "patternProperties": {"^a": {"type": "boolean"}}, "additionalProperties": {"type": "null"}},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False, "minItems": 2},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]},
    {"allOf": [{"required": ["b"]}, {"properties": {"a": {"type": "integer"}}}], "type": "object"},
    {},
]
X = {
    "name": "x",
    "parameters": {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}}},
}
TOOLS = (
    {"type": "function", "function": X},
    {"type": "function", "function": {"name": "y", "parameters": {"type": "object", "additionalProperties": False}}},
    {"type": "function", "function": {"name": "any"}},
)
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


@pytest.fixture(scope="module")
def atlas() -> Any:
    return load_tokenizer(Path(mlx_roster.demo.__file__).parent / "models" / "atlas")


@pytest.fixture(scope="module")
def grammars(atlas: Any) -> Grammars:
    return Grammars(atlas, 768)


@pytest.fixture(scope="module")
def plain() -> Grammars:
    return Grammars(tokenizer(), 320)


@pytest.fixture(scope="module")
def thinking() -> Grammars:
    return Grammars(tokenizer(*MARKERS, parser="json_tools"), 320)


def fits(text: str, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:30])
def test_any_draw_fits_the_schema(grammars: Grammars, atlas: Any, schema: Any, seed: int) -> None:
    wanted = generation(json.dumps(schema))
    fits(Walk(grammars, wanted, size=768).finish(at_random(atlas, seed)), schema)


@pytest.mark.parametrize("seed", range(8))
def test_without_a_schema_it_is_an_object(grammars: Grammars, atlas: Any, seed: int) -> None:
    text = Walk(grammars, generation(), size=768).finish(at_random(atlas, seed))
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_draws_fit(grammars: Grammars, atlas: Any, seed: int) -> None:
    schema = {"type": "object", "properties": {"a": {"maxLength": 9, "type": "string"}, "b": {"type": "boolean"}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    fits(Walk(grammars, generation(json.dumps(schema)), size=768).finish(greedily(seed, 768)), schema)


NAMES = st.sampled_from(["a", "b", "the name", 'quoted"', "é你", "line\nbreak"])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], required: int, more: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:required],
            "additionalProperties": more,
        }

    return st.builds(made, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3), st.booleans() | inner)


LEAVES = st.one_of(
    st.sampled_from([{"type": "string"}, {"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span}, st.integers(), st.integers(0)
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span}, *[st.integers(0, 5)] * 2
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.none() | st.integers() | st.text(max_size=5), min_size=1)),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner)
        | st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3))
        | st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
    ),
    max_leaves=6,
)


@given(schema=ANY, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_any_draw_fits_any_schema(plain: Grammars, schema: Any, seed: int) -> None:
    walk = Walk(plain, generation(json.dumps(schema)))
    fits(walk.finish(at_random(walk.tokenizer, seed, 30)), schema)


def test_every_end_is_allowed_at_the_end_and_nothing_else(plain: Grammars) -> None:
    walk = Walk(plain, generation('{"const": 1}'))
    assert walk.names() == {"1"}
    walk.say("1")
    assert walk.names() == {END, ENDING}
    for _ in range(2):
        # What is drawn after the end is thrown away, but it is drawn.
        walk.draw(walk.tokenizer.convert_tokens_to_ids(ENDING))
        assert walk.names() == {END, ENDING}
    assert walk.gate.error is None


@pytest.mark.parametrize("size", [256, 278, 320, 1000])
def test_logits_may_be_fewer_or_more_than_the_tokens(size: int) -> None:
    words = tokenizer()
    walk = Walk(Grammars(words, size), generation(), size=-(-size // 32) * 32)
    while len(walk.drawn) < 50 and walk.drawn[-1:] != [0]:
        allowed = walk.allowed()
        assert max(allowed) < min(len(words), size)
        walk.draw(int(allowed[-1]))


def test_other_ends_than_the_tokenizers() -> None:
    words = tokenizer()
    walk = Walk(Grammars(words, 320, [5, 100_000]), generation('{"const": 1}'))
    walk.say("1")
    assert walk.allowed().tolist() == [5]


def test_special_tokens_are_no_text(thinking: Grammars) -> None:
    walk = Walk(thinking, generation('{"type": "string"}'), "<think></think>")
    walk.say('"<thi')
    assert not walk.names() & {*MARKERS, END, ENDING}
    walk.say('nk>"')
    assert walk.names() == {END, ENDING}


def test_whitespace_cannot_go_on(plain: Grammars) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"enum": [[]]}}, "required": ["a"], "additionalProperties": False}
    )
    walk = Walk(plain, generation(schema))
    blanks = [token for token in range(len(walk.tokenizer)) if not walk.tokenizer.decode([token]).strip()]
    walk.finish(greedily(0, 320, blanks), limit=150)
    assert json.loads(walk.text) == {"a": []}


@pytest.mark.parametrize(
    "text", ['{"a":1,"b":2}', '{"a": 1, "b": 2}', '{\n  "a": 1,\n  "b": 2\n}', '{\n    "a": 1,\n    "b": 2\n}']
)
def test_either_style_is_allowed(plain: Grammars, text: str) -> None:
    walk = Walk(plain, generation())
    walk.say(text)
    assert END in walk.names()


def test_a_property_has_one_spelling(plain: Grammars) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    walk = Walk(plain, generation(schema))
    walk.say('{"')
    assert not walk.takes("\\u0061")


class TestThinking:
    """Thoughts first, which may be anything, then what was asked for."""

    SCHEMA = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false}'

    @pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
    def test_begun_by_the_prompt(self, thinking: Grammars, opened: str) -> None:
        walk = Walk(thinking, generation(self.SCHEMA), f"hello{opened}")
        assert len(walk.allowed()) > 250
        # The answer cannot be left out, nor a call be made before thoughts have ended.
        assert not walk.names() & {END, ENDING, "<tool_call>"}
        walk.say('not {JSON "at all</think>')
        assert "Ċ" in walk.names()
        assert "h" not in walk.names()
        walk.say('\n\n{"a": 1}')
        assert walk.names() == {END, ENDING}

    def test_begun_by_the_model(self, thinking: Grammars) -> None:
        walk = Walk(thinking, generation(self.SCHEMA))
        assert {"<think>", "{"} <= walk.names()
        assert "h" not in walk.names()
        walk.say('<think>hm</think>{"a":1}')
        assert walk.names() == {END, ENDING}

    def test_only_at_the_beginning(self, thinking: Grammars) -> None:
        walk = Walk(thinking, generation(self.SCHEMA))
        walk.say("\n")
        assert "<think>" not in walk.names()
        walk = Walk(thinking, generation(self.SCHEMA))
        walk.say("<think></think>")
        assert "<think>" not in walk.names()

    @pytest.mark.parametrize("closed", ["<think></think>", "<think>\n\n</think>\n\n"])
    def test_ended_by_the_prompt(self, thinking: Grammars, closed: str) -> None:
        walk = Walk(thinking, generation(self.SCHEMA), f"hello{closed}")
        assert "<think>" not in walk.names()
        assert "{" in walk.names()

    def test_of_an_earlier_turn(self, thinking: Grammars) -> None:
        walk = Walk(thinking, generation(self.SCHEMA), "<think>hm</think>hello")
        assert {"<think>", "{"} <= walk.names()

    def test_markers_of_several_tokens(self) -> None:
        words = tokenizer("<|channel>", "<channel|>")
        assert len(words.think_start_tokens) > 1
        grammars = Grammars(words, 320)
        walk = Walk(grammars, generation(self.SCHEMA))
        walk.say('<|channel>thought\nhm<channel|>{"a":1}')
        assert walk.names() == {END, ENDING}
        walk = Walk(grammars, generation(self.SCHEMA), "<|channel>thought\n")
        walk.say('hm<channel|>{"a":1}')
        assert walk.names() == {END, ENDING}

    def test_before_calls(self, thinking: Grammars) -> None:
        walk = Walk(thinking, calling(Tools(TOOLS, "named", "y")), "<think>")
        walk.say('I call</think>\n\n<tool_call>\n{"name": "y", "arguments": {}}\n</tool_call>')
        assert {END, ENDING} <= walk.names()


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
    assert not said.strip()
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
    # A call that is not demanded is not constrained.
    assert len(walk.allowed()) == walk.size
    walk = Walk(thinking, wanted)
    walk.say("\n1")
    assert walk.names() == {END, ENDING}
    walk = Walk(thinking, generation('{"const": 1}'))
    assert "<tool_call>" not in walk.names()


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        (generation('{"type": "object", "not": {}}'), "response_format", "the schema cannot be enforced: it uses 'not'"),
        (generation('{"$ref": "#"}'), "response_format", "nothing fits it"),
        (generation('{"type": "string", "pattern": "^(a?){1000}(a){1000}$"}'), "response_format", "too complex"),
        (calling(Tools(({"function": {"name": "f", "parameters": {"not": {}}}},), "required")), "tools", "function 'f' cannot be enforced: it uses 'not'"),
        (calling(Tools(({"function": {"name": "f", "parameters": {"type": "string"}}},), "required")), "tools", "must be of type 'object'"),
        (calling(Tools(({"function": {"name": "f", "parameters": {"enum": ["a" * 1000] * 300}}},), "required")), "tools", "larger than"),
        (calling(Tools(TOOLS, "named", "none")), "tools", "no such function"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(plain: Grammars, wanted: Generation, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plain.gate(wanted, [1])
    assert caught.value.param == param
    assert said in caught.value.message


def test_a_tokenizer_that_cannot_be_taken() -> None:
    class Slow(PreTrainedTokenizerBase):
        """Not one of Rust."""

        def __len__(self) -> int:
            return 3

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "c": 2}

    grammars = Grammars(TokenizerWrapper(Slow(chat_template="")), 3, [0])
    for wanted, param in ((generation(), "response_format"), (calling(Tools(TOOLS, "required")), "tools")):
        with pytest.raises(InvalidRequest, match="tokenizer cannot be constrained") as caught:
            grammars.gate(wanted, [1])
        assert caught.value.param == param


def test_what_is_wanted() -> None:
    assert not Grammars.wanted(Generation(Chat([]), 1))
    assert not Grammars.wanted(calling(Tools(TOOLS)))
    assert Grammars.wanted(calling(Tools(TOOLS, "required")))
    assert Grammars.wanted(generation(tools=Tools(TOOLS)))
    assert Grammars(tokenizer(), 320).gate(Generation(Chat([]), 1), [1]) is None


def test_a_grammar_is_compiled_once_while_it_is_kept() -> None:
    grammars = Grammars(tokenizer(), 320, kept=2)
    wanted = [generation(json.dumps({"const": n})) for n in range(3)]
    grammars.gate(wanted[0], [1])
    first = grammars._compiled.copy()
    grammars.gate(generation(json.dumps({"const": 0})), [7])
    assert list(grammars._compiled.items()) == list(first.items())
    for one in wanted:
        grammars.gate(one, [1])
    assert len(grammars._compiled) == 2
    assert not set(first) & set(grammars._compiled)


def test_sequences_of_one_grammar_do_not_touch_each_other(plain: Grammars) -> None:
    one, other = (Walk(plain, generation('{"enum": ["ab", "cd"]}')) for _ in range(2))
    one.say('"a')
    other.say('"c')
    assert one.names() <= {"b", 'b"'}
    assert other.names() <= {"d", 'd"'}


def spoil(plain: Grammars) -> tuple[Generation, Walk]:
    """A schema that takes too much once there is text, and a sequence under it that has come so far."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^(a?){1000}(a){1000}$"}},
        "required": ["a"],
    }
    wanted = generation(json.dumps(schema))
    walk = Walk(plain, wanted)
    walk.say('{"a":"')
    walk.allowed()
    return wanted, walk


def test_a_grammar_that_becomes_too_complex_ends_its_sequences(plain: Grammars) -> None:
    wanted, walk = spoil(plain)
    assert walk.gate.error is not None
    assert walk.names() == {END, ENDING}
    walk.draw(walk.tokenizer.eos_token_id)
    # The next request gets a new one, which is as good as the first.
    assert Walk(plain, wanted).names() == {"{", '{"'}


def test_a_token_that_was_not_allowed_is_an_error(plain: Grammars) -> None:
    walk = Walk(plain, generation())
    walk.gate.advance(walk.tokenizer.convert_tokens_to_ids("x"))
    assert walk.gate.error is not None
    assert walk.names() == {END, ENDING}
    walk.gate.advance(0)
