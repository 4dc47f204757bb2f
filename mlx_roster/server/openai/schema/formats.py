"""What form an answer must have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from mlx_roster.core import Format
from mlx_roster.server.openai.schema.values import MAX_SCHEMA, NAME, Strict, plain_fields, schema_size


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    if schema_size(plain_fields(schema)) > MAX_SCHEMA:
        raise PydanticCustomError("too_large", "must have at most {most} KiB", {"most": MAX_SCHEMA // 1024})
    return schema


class PlainText(Strict):
    """Whatever the model says."""

    type: Literal["text"]


class JSONObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JSONSchema(Strict):
    """A schema, and how OpenAI calls it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "person", "schema": {"type": "object", "properties": {"name": {"type": "string"}}}}]
        }
    )

    name: str = Field(pattern=NAME)
    description: str | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_bounded)] | None = Field(
        default=None, alias="schema", description="A JSON Schema; none takes any JSON object."
    )
    strict: bool | None = Field(default=None, description="Without effect: the schema is kept to in any case.")


class JSONOfSchema(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JSONSchema


def _kind(value: object) -> str | None:
    return f"<{value.get('type')}>" if isinstance(value, dict) else None


ResponseFormat = Annotated[
    Annotated[PlainText, Tag("<text>")]
    | Annotated[JSONObject, Tag("<json_object>")]
    | Annotated[JSONOfSchema, Tag("<json_schema>")],
    Discriminator(
        _kind,
        custom_error_type="format_type",
        custom_error_message='must be an object with the type "text", "json_object" or "json_schema"',
    ),
]


def wanted(form: PlainText | JSONObject | JSONOfSchema | None) -> Format | None:
    """What a worker is told of it: nothing where any text will do."""
    match form:
        case JSONObject():
            return Format()
        case JSONOfSchema(json_schema=JSONSchema(schema_=None)):
            return Format()
        case JSONOfSchema(json_schema=JSONSchema(schema_=schema)):
            return Format(msgspec.json.encode(schema).decode())
    return None
