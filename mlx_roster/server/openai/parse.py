"""From a decoded body to a request: fields sifted, types checked, every complaint naming its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mlx_roster.errors import InvalidRequest, UnsupportedContent
from mlx_roster.server.openai.fields import shown, sift, sift_inner
from mlx_roster.server.openai.schema import ChatRequest, GenerationRequest, TextRequest
from mlx_roster.server.openai.schema.generation import StreamOptions

R = TypeVar("R", bound=GenerationRequest)

#: The one field that is an object of fields without which the answer would be the same.
_OPTIONS = "stream_options"

_KNOWN = frozenset(ChatRequest.model_fields) | frozenset(TextRequest.model_fields)


def parse(schema: type[R], body: dict[str, Any], *, strict_fields: bool, n_limit: int) -> tuple[R, list[str]]:
    """The request, and the names of the fields that nobody knows. `n` is at most `n_limit`.

    Raises InvalidRequest, UnsupportedParameter or UnsupportedContent, each with the field's path as `param`.
    """
    kept, unknown = sift(body, schema.model_fields, _KNOWN)
    if isinstance(options := kept.get(_OPTIONS), dict):
        kept[_OPTIONS], others = sift_inner(_OPTIONS, options, StreamOptions.model_fields)
        unknown += others
    if unknown and strict_fields:
        raise InvalidRequest(f"unknown fields: {shown(unknown)}", param=shown(unknown[:1]))
    try:
        request = schema.model_validate(kept)
    except ValidationError as error:
        # Each in turn would be found after the first is mended; one at a time can be read.
        raise _explained(error.errors(include_url=False, include_input=False)[0]) from error
    request.check(n_limit)
    return request, unknown


def _explained(details: ErrorDetails) -> InvalidRequest:
    path = _path(details["loc"])
    cls = UnsupportedContent if details["type"] == "unsupported_content" else InvalidRequest
    return cls(f"{path} {_complaint(details)}", param=path)


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].role`. Names in angle brackets are the schema's own: they say which form of a union was meant."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{shown([step])}" if path else shown([step])
    return path


def _number(bound: float) -> str:
    # An integer of 19 digits would not survive being formatted as a float.
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


_COMPLAINTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "extra_forbidden": lambda _: "is not a known field",
    "bool_type": lambda _: "must be true or false",
    "int_type": lambda _: "must be an integer",
    "float_type": lambda _: "must be a number",
    "string_type": lambda _: "must be a string",
    "list_type": lambda _: "must be an array",
    "model_type": lambda _: "must be an object",
    "literal_error": lambda ctx: f"must be {ctx['expected']}",
    "greater_than": lambda ctx: f"must be greater than {_number(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"must be at least {_number(ctx['ge'])}",
    "less_than_equal": lambda ctx: f"must be at most {_number(ctx['le'])}",
    "dict_type": lambda _: "must be an object",
    "string_pattern_mismatch": lambda _: "must be 1 to 64 letters, digits, underscores or hyphens",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "too_short": lambda _: "must not be empty",
    "string_too_short": lambda _: "must not be empty",
    "too_long": lambda ctx: f"must have at most {ctx['max_length']} items",
}


def _complaint(details: ErrorDetails) -> str:
    worded = _COMPLAINTS.get(details["type"])
    if worded is None:
        return details["msg"].replace("Input should be", "must be").replace("Value error, ", "")
    return worded(details.get("ctx", {}))
