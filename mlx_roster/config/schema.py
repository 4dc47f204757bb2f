"""The roster file's JSON Schema, for editors. `python -m mlx_roster.config.schema > docs/roster.schema.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from mlx_roster.config.model import Roster

_ABOUT = ("title", "description", "default")
_VARIABLE = {"description": "Taken from the environment.", "pattern": r"\$\{", "title": "Variable", "type": "string"}

# What `Roster` itself says of its models.
_SOMETHING_TO_SERVE = [
    {"properties": {"models": {"minProperties": 1}}, "required": ["models"]},
    {"required": ["unlisted"]},
    {"required": ["discover"]},
]


def json_schema() -> dict[str, Any]:
    """Draft 2020-12. It knows all that the models know of a single value; only `load` compares values."""
    schema = Roster.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        model["properties"] = {key: _property(value) for key, value in model["properties"].items()}
    schema["$defs"]["Variable"] = _VARIABLE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "anyOf": _SOMETHING_TO_SERVE,
        "title": "mlx-roster",
    }


def _property(schema: dict[str, Any]) -> dict[str, Any]:
    if "patternProperties" in schema:
        # pydantic leaves it unsaid that other names are refused.
        return {**schema, "additionalProperties": False}
    if "items" in schema:
        return {**schema, "items": _property(schema["items"])}
    if any(_holds_more(each) for each in schema.get("anyOf", ())):
        return {**schema, "anyOf": [_property(each) if _holds_more(each) else each for each in schema["anyOf"]]}
    about = {key: schema[key] for key in _ABOUT if key in schema}
    rest = {key: value for key, value in schema.items() if key not in _ABOUT}
    alternatives = rest.get("anyOf", [rest])
    if any(not _takes_variable(alternative) for alternative in alternatives):
        return schema
    return {**about, "anyOf": [*alternatives, {"$ref": "#/$defs/Variable"}]}


def _holds_more(schema: dict[str, Any]) -> bool:
    return "patternProperties" in schema or "items" in schema


def _takes_variable(schema: dict[str, Any]) -> bool:
    """Whether `schema` describes a single value, and one that is not any string already."""
    kind = schema.get("type")
    bounded = "pattern" in schema or "const" in schema
    return kind in ("integer", "number", "boolean", "null") or (kind == "string" and bounded)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
