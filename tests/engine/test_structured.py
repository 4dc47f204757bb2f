"""Structured output through the whole engine, in a batch with rows that are free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlx_roster.core import Format, Generation, Tools
from mlx_roster.errors import InvalidRequest
from tests.engine import tiny
from tests.engine.tiny import Driven

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fox", "dog"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}


def formatted(schema: Any = SCHEMA, prompt: str = "hello world", **fields: Any) -> Generation:
    wanted = tiny.request(prompt, max_tokens=200, **fields)
    return msgspec.structs.replace(wanted, format=Format(json.dumps(schema)))


def kept(text: str) -> None:
    said = json.loads(text)
    assert list(said) == ["kind", "count", "tags"]
    assert said["kind"] in ("fox", "dog")
    assert 0 <= said["count"] <= 99
    assert len(said["tags"]) <= 2


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "seed": 1}, {"temperature": 1.0, "seed": 2, "top_p": 0.5}]
)
def test_rows_that_are_held_to_a_schema_and_rows_that_are_free(engine: Driven, sampling: dict[str, Any]) -> None:
    free = [tiny.request(f"the quick {word}", max_tokens=60, **sampling) for word in ("brown", "fox")]
    alone = [engine.answer(request) for request in free]
    numbers = [engine.ask(request) for request in (formatted(**sampling), *free, formatted(prompt="dog", **sampling))]
    engine.until_ended(*numbers)
    assert not engine.said.errors
    for number in (numbers[0], numbers[3]):
        kept(engine.said.text(number))
        assert engine.said.last(number).finish == "stop"
    assert [engine.said.text(number) for number in numbers[1:3]] == alone


def test_under_an_adapter(engine: Driven, adapters: list[Path]) -> None:
    kept(engine.answer(formatted(over=adapters[0])))


def test_an_answer_that_was_cut_off_is_the_beginning_of_one(engine: Driven) -> None:
    whole = engine.answer(formatted())
    number = engine.ask(msgspec.structs.replace(formatted(), max_tokens=5))
    engine.until_ended(number)
    assert engine.said.last(number).finish == "length"
    assert whole.startswith(engine.said.text(number))


def test_a_schema_that_cannot_be_enforced_is_refused_before_anything_is_said(engine: Driven) -> None:
    with pytest.raises(InvalidRequest, match="'not'") as caught:
        engine.answer(formatted({"not": {}}))
    assert caught.value.param == "response_format"


def test_a_grammar_that_becomes_too_complex_ends_its_sequence_only(engine: Driven) -> None:
    many = {"type": "object", "properties": {f"p{n}": {} for n in range(600)}, "minProperties": 0}
    spoilt = engine.ask(formatted({"type": "array", "prefixItems": [{"const": "a" * 100}, many], "minItems": 2}))
    other = engine.ask(formatted())
    engine.until_ended(spoilt, other)
    # It is the schema that is at fault.
    error = engine.said.errors[spoilt]
    assert isinstance(error, InvalidRequest)
    assert error.param == "response_format"
    assert "too complex" in error.message
    kept(engine.said.text(other))


def test_a_call_that_is_demanded(engine: Driven) -> None:
    function = {"name": "look", "parameters": {"properties": {"at": {"enum": [1, 2]}}, "required": ["at"]}}
    function["parameters"] |= {"additionalProperties": False}
    tools = Tools(({"type": "function", "function": function},), "named", "look", parallel=False)
    # A text completion shows what was said as it is.
    said = json.loads(engine.answer(msgspec.structs.replace(tiny.request(max_tokens=200), tools=tools)))
    assert [call["name"] for call in said] == ["look"]
    assert said[0]["arguments"]["at"] in (1, 2)
