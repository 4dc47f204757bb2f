"""JSON Schemas: what cannot be enforced is refused by name, and a hostile schema costs nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_roster.engine.schemas import SIZE, enforceable, parsed
from mlx_roster.errors import InvalidRequest

TEXT = {"type": "string"}


def refusal(schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        enforceable(schema, "the schema", "response_format")
    assert caught.value.param == "response_format"
    assert caught.value.message.startswith("the schema cannot be enforced: ")
    assert "/work" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"not": TEXT}, "'not'"),
        ({"if": TEXT, "then": {}, "else": {}}, "'if'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "contains": TEXT}, "'contains'"),
        ({"minContains": 1}, "'minContains'"),
        ({"dependentSchemas": {"a": {}}}, "'dependentSchemas'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"unevaluatedItems": False}, "'unevaluatedItems'"),
        ({"propertyNames": {"pattern": "a"}}, "'propertyNames'"),
        ({"$dynamicRef": "#"}, "'$dynamicRef'"),
        ({"type": "object", "properties": {"a": {"items": {"not": {}}}}}, "'not'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, "'not'"),
        ({"oneOf": [TEXT, TEXT | {"maxLength": 3}]}, "'oneOf'"),
        ({"type": "string", "format": "idn-email"}, "'format' 'idn-email'"),
        ({"type": "strng"}, "'type' 'strng'"),
        ({"$ref": "https://example.com/schema.json"}, "'$ref' or '$id' 'https://example.com/schema.json'"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"$ref": "#/$defs/none"}, "'$ref' to '/$defs/none'"),
        ({"type": "string", "pattern": "(?=a)b"}, "'pattern': look-around"),
        ({"type": "string", "pattern": "("}, "'pattern': unclosed group"),
        ({"type": "object", "patternProperties": {"a": {}, "b": {}}}, "'patternProperties' overlap"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "'minProperties'"),
        ({"type": "number", "minimum": 1e-300, "maximum": 1e15}, "too complex"),
        ({"type": "integer", "minimum": -(2**64), "maximum": -1}, "'minimum'"),
        ({"type": "number", "exclusiveMaximum": 1e300}, "'exclusiveMaximum'"),
        ({"enum": [-(2**63)]}, "more than 64 bits"),
        ({"type": "number", "multipleOf": 123457}, "'multipleOf'"),
        ({"type": "integer", "multipleOf": 0}, "'multipleOf'"),
        ({"type": "integer", "multipleOf": True}, "multipleOf"),
        ({"minLength": "long", "type": "string"}, "'minLength'"),
        ({"properties": 3}, "properties"),
        ({"type": "string", "maxLenght": 3}, "'maxLenght'; did you mean 'maxLength'?"),
        ({"type": "object", "properties": {"a": {"enumm": [1]}}}, "did you mean 'enum'?"),
        ({"enum": []}, "nothing fits it"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "nothing fits it"),
        ({"const": "x\0y"}, "'const' has a control character"),
        ({"enum": ["a", ["\x7f"]]}, "'enum' has a control character"),
        ({"properties": {"a": {"const": {"b": "\x1b"}}}}, "'const' has a control character"),
        ({"$ref": "#/elsewhere/a", "elsewhere": {"a": {"const": "\x01"}}}, "'const' has a control character"),
        ({"properties": {"\x01": {}}, "patternProperties": {"^.b$": TEXT}}, "'patternProperties'"),
        ({"type": "string", "pattern": r"^\x01$"}, r"'pattern' '^\\x01$': nothing fits it"),
        ({"pattern": r"^a\x7fb$"}, "nothing fits it"),
        ({"pattern": "a\x1bb"}, "nothing fits it"),
        ({"pattern": r"^\u{0}"}, "nothing fits it"),
        ({"pattern": r"^a\ab$"}, "nothing fits it"),
        ({"type": "object", "properties": {"a": {"pattern": r"^a[\x01]$"}}}, "nothing fits it"),
        ({"type": "object", "properties": {"a": {"pattern": "^a{1000000}$"}}}, "'^a{1000000}$': it is too complex"),
        ({"pattern": "^(((a{1,100}){1,100}){1,100})$"}, "too complex"),
        ({"pattern": "(?x) a # [b"}, "'pattern': flag x"),
        (False, "it must be an object"),
        ([], "it must be an object"),
        ("string", "it must be an object"),
        ({"x-guidance": {"lenient": True, "coerce_one_of": True}, "not": {}}, "'not'"),
        ({"x-guidance": {"coerce_one_of": True}, "oneOf": [TEXT, TEXT]}, "'oneOf'"),
    ],
)
def test_what_cannot_be_enforced_is_named(schema: Any, name: str) -> None:
    assert name in refusal(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        },
        {"type": "object", "properties": {"not": TEXT, "if": TEXT, "maxLenght": TEXT}},
        {"enum": [{"not": 1, "maxLenght": 2}]},
        {
            "title": "T",
            "description": "d",
            "default": 1,
            "examples": [2],
            "x-order": 3,
            "nullable": True,
            "deprecated": True,
        },
        {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]},
        {"type": "string", "format": "date-time"},
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
        {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/a", "type": "integer"},
        {"type": "number", "multipleOf": 0.01},
        {"type": "array", "uniqueItems": False, "unevaluatedItems": True},
        {"not": False, "propertyNames": {}, "unevaluatedProperties": True},
        {"dependentRequired": {}, "items": {"dependentSchemas": {}, "propertyNames": True}},
        {"const": {"a\x01": "\b\t\n\f\r\x80\u2028"}},
        {"type": "integer", "pattern": r"\x01"},
        {"x-guidance": 3},
    ],
)
def test_what_can_be_enforced_is_taken(schema: Any) -> None:
    assert json.loads(enforceable(schema, "the schema", "response_format"))["x-guidance"]["lenient"] is False


def chain(length: int, *keywords: str) -> dict[str, Any]:
    """References behind one another, each through one of these keywords."""
    step = {
        "allOf": lambda ref: {"allOf": [ref, {"type": "object"}]},
        "anyOf": lambda ref: {"anyOf": [ref, {"type": "null"}]},
    }
    step["properties"] = lambda ref: {"type": "object", "properties": {"a": ref}}
    makes = [step[keyword] for keyword in keywords]
    links = {f"d{n}": makes[n % len(makes)]({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "object"}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        chain(1500, "allOf"),
        chain(1500, "anyOf"),
        chain(1500, "properties"),
        chain(400, "allOf", "anyOf", "properties"),
        nested(100),
        nested(400),
        {"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}"} for n in range(20)]},
        {"allOf": [{"properties": {"a": {"pattern": f".*a.{{{n}}}"}}} for n in range(20)]},
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]},
        {"allOf": [{"anyOf": [{"properties": {f"a{n}{m}": {}}} for m in "ab"]} for n in range(24)]},
        {"type": "object", "patternProperties": {f"^a{{{n}}}$": {} for n in range(200)}},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_that_would_take_long_or_crash_is_refused(schema: Any) -> None:
    said = ("nested too deeply", "too complex", "too many", "more than", "too large")
    assert any(words in refusal(schema) for words in said)


def test_definitions_of_an_ordinary_size_are_taken() -> None:
    enforceable(chain(200, "properties", "anyOf"), "the schema", "response_format")
    enforceable(nested(30), "the schema", "response_format")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ('{"minimum": NaN}', "is not valid JSON"),
        ("[" * 50_000, "is nested too deeply"),
        (json.dumps({"enum": ["a" * SIZE]}), "is larger than 64 KiB"),
    ],
)
def test_text_that_is_no_schema(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        parsed(text, "the schema", "response_format")
    assert caught.value.param == "response_format"


def test_numbers_that_json_has_not() -> None:
    schema = parsed('{"const": 1e999}', "the schema", "response_format")
    assert "Out of range float" in refusal(schema)
