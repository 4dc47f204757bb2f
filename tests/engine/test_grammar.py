"""Structured output: whatever a model would like to say, what it says fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from transformers import ByT5Tokenizer

import mlx_roster.demo
from mlx_roster.core import Chat, Generation, Tools
from mlx_roster.engine.grammar import Grammars
from mlx_roster.engine.patterns import UNSAYABLE
from mlx_roster.errors import InvalidRequest
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
    greedily,
    tokenizer,
)

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
MANY = {"type": "object", "properties": {f"p{n}": {} for n in range(600)}}
SCHEMAS = [
    PERSON,
    {"type": "string", "format": "uuid"},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"type": "string", "pattern": '^[^"a-z]{0,9}$'},
    {"type": "string", "pattern": r"^[\x00-\x20]{5}$"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    {"type": "object", "patternProperties": {"^a": {"type": "boolean"}}, "additionalProperties": {"type": "null"}},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False, "minItems": 2},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]},
    {"allOf": [{"required": ["b"]}, {"properties": {"a": {"type": "integer"}}}], "type": "object"},
    {},
]


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


WHOLE = st.integers(-(2**51), 2**51)
SAYABLE = st.text(max_size=5).filter(lambda text: not UNSAYABLE.search(text))


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
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span}, WHOLE, WHOLE.map(abs)),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span}, *[st.integers(0, 5)] * 2
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.none() | WHOLE | SAYABLE, min_size=1)),
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
    walk = Walk(Grammars(words, size), generation(), size=size)
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


def calling_f(parameters: dict[str, Any]) -> Generation:
    return calling(Tools(({"type": "function", "function": {"name": "f", "parameters": parameters}},), "required"))


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        (generation('{"not": {}}'), "response_format", "the schema cannot be enforced: it uses 'not'"),
        (generation('{"$ref": "#"}'), "response_format", "nothing fits it"),
        (generation('{"type": "string", "pattern": "^(a?){1000}(a){1000}$"}'), "response_format", "too complex"),
        (generation(json.dumps({"type": "array", "items": MANY, "minItems": 1})), "response_format", "too complex"),
        (calling_f({"properties": {"a": MANY}, "required": ["a"]}), "tools", "too complex"),
        (calling_f({"properties": {"a": {"const": "\x1b"}}}), "tools", "its 'const' has a control character"),
        (calling_f({"not": {}}), "tools", "the schema of function 'f' cannot be enforced: it uses 'not'"),
        (calling_f({"type": "string"}), "tools", "the schema of function 'f' must be of type 'object'"),
        (calling_f({"description": "a" * 300_000}), "tools", "larger than 256 KiB"),
        (calling(Tools(TOOLS, "named", "none")), "tools", "no such function"),
    ],
)
def test_refusals_name_the_field(plain: Grammars, wanted: Generation, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plain.gate(wanted, [1])
    assert caught.value.param == param
    assert said in caught.value.message


def test_a_tokenizer_that_cannot_be_taken() -> None:
    grammars = Grammars(TokenizerWrapper(ByT5Tokenizer()), 400)
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
    first = dict(grammars._compiled)
    grammars.gate(generation(json.dumps({"const": 0})), [7])
    assert dict(grammars._compiled) == first
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


def test_a_grammar_that_becomes_too_complex_ends_its_sequences(plain: Grammars) -> None:
    wanted = generation(json.dumps({"type": "array", "prefixItems": [{"const": "a" * 100}, MANY], "minItems": 2}))
    walk = Walk(plain, wanted)
    walk.say(f'["{"a" * 100}",{{')
    assert walk.names() == {END, ENDING}
    assert walk.gate.error is not None
    assert walk.gate.param == "response_format"
    walk.draw(walk.tokenizer.eos_token_id)
    # The next request gets a new one, which is as good as the first.
    assert "[" in Walk(plain, wanted).names()


def test_a_token_that_was_not_allowed_is_an_error(plain: Grammars) -> None:
    walk = Walk(plain, generation())
    walk.gate.advance(walk.tokenizer.convert_tokens_to_ids("x"))
    assert walk.gate.error is not None
    assert walk.names() == {END, ENDING}
    walk.gate.advance(0)
