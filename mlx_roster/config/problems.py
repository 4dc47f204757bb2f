"""What is wrong with a roster, in the words of the person who wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlx_roster.config.names import Location, suggestion
from mlx_roster.errors import ConfigError

#: pydantic's own words speak of Python's types.
_PHRASES = {
    "missing": "is required",
    "string_type": "should be a string",
    "string_unicode": "is not valid Unicode text",
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": 'should be a name without spaces, ":", "$" or braces',
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping",
    "mapping_type": "should be a mapping",
    "model_type": "should be a mapping",
    "too_short": "should not be empty",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: with the whole file where `location` is empty, on no one line where `line` is None."""

    message: str
    location: Location = ()
    line: int | None = None

    def render(self, name: str) -> str:
        where = name if self.line is None else f"{name}:{self.line}"
        parts = [where, dotted(self.location), self.message] if self.location else [where, self.message]
        return _one_line(": ".join(parts))


def config_error(name: str, problems: Iterable[Problem]) -> ConfigError:
    """All of `problems`, a line each, in the file's order."""
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    return ConfigError("\n".join(dict.fromkeys(problem.render(name) for problem in ordered)))


def dotted(location: Location) -> str:
    """`models.atlas.aliases[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def from_pydantic(error: ValidationError, root: type[BaseModel]) -> Iterable[Problem]:
    """What pydantic found, without lines. What concerns several keys is left out: who calls this knows more of that."""
    for details in error.errors(include_url=False):
        if details["type"] not in ("clash", "exposed"):
            # pydantic marks an error in a mapping's key by a last step "[key]".
            location = tuple(part for part in details["loc"] if part != "[key]")
            yield Problem(_message(details, root), location)


def _message(details: ErrorDetails, root: type[BaseModel]) -> str:
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        return f"unknown key{suggestion(str(details['loc'][-1]), _keys_at(details['loc'][:-1], root))}"
    if given is None and kind != "missing":
        return "is empty; give it a value or leave the key out"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    message = _PHRASES.get(kind) or details["msg"].removeprefix("Input ")
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"{message}; put it in quotes"
    return message


def _keys_at(location: Location, root: type[BaseModel]) -> Iterable[str]:
    """The keys of the model that stands at `location`."""
    model, names_follow = root, False
    for part in location:
        if names_follow:
            names_follow = False
        elif (field := model.model_fields.get(str(part))) is not None:
            model = _model_in(field.annotation) or model
            names_follow = get_origin(field.annotation) is Mapping
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _one_line(text: str) -> str:
    """A file may hold any character in quotes; none may forge a line of the report or reach a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
