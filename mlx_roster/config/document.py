"""YAML text to plain values, each of which knows its line.

Only mappings, lists, strings, numbers, booleans and null come out, whatever tags the text has: nodes are read directly
and no YAML constructor runs. Plain words follow YAML 1.2, so `on` and `no` are words and not booleans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from mlx_roster.config.environment import expand
from mlx_roster.config.names import Location
from mlx_roster.config.problems import Problem

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    # The stubs have it as an instance's; PyYAML has it as the class's, and so starts without what it would inherit.
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


for _kind, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^{_pattern}\Z"), _first)


@dataclass(slots=True)
class Marked:
    """A value and what lies within it: by key or number, with the line of the key. Aliases share one Marked."""

    line: int
    plain: Any = None
    children: dict[str | int, tuple[int, Marked]] = field(default_factory=dict)

    def line_of(self, location: Location) -> int:
        """The line of what stands at `location`, or of the nearest thing around it that does exist."""
        line, marked = self.line, self
        for part in location:
            if part not in marked.children:
                break
            line, marked = marked.children[part]
        return line


def read(text: str, environ: Mapping[str, str]) -> tuple[Marked | None, list[Problem]]:
    """The document in `text`, None where it is empty or no YAML at all, and everything that is wrong with it.

    Where part of it is wrong, the rest is there: its own problems can be told in the same breath.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            return None, [Problem("the file is empty")]
        builder = _Builder(environ)
        return builder.build(root, ()), builder.problems
    except yaml.YAMLError as error:
        return None, [_syntax(error, text)]
    except RecursionError:
        return None, [Problem("not valid YAML: nested too deeply")]
    except (ValueError, OverflowError):
        # PyYAML trips over escapes such as "\UFFFFFFFF" itself and says neither where nor why.
        return None, [Problem("not valid YAML: it has an escape or a number that is out of range")]


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "it cannot be read"
        if mark is None:
            return Problem(f"not valid YAML: {reason}")
        if text[: mark.index].rpartition("\n")[2].endswith("$"):
            reason += "; within { } or [ ] a variable needs quotes, and a line of its own to be a number"
        return Problem(f"not valid YAML: {reason}", line=mark.line + 1)
    if isinstance(error, yaml.reader.ReaderError):
        return Problem("not valid YAML: a control character", line=text.count("\n", 0, error.position) + 1)
    return Problem("not valid YAML")


class _Builder:
    """Turns nodes into Marked values. Used once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._environ = environ
        self._resolver = _Loader("")
        # By identity: an alias is its anchor's node again. What is being built maps to None.
        self._built: dict[yaml.Node, Marked | None] = {}

    def build(self, node: yaml.Node, location: Location) -> Marked:
        if node in self._built:
            marked = self._built[node]
            return marked or self._refuse("an alias may not lie within its own anchor", node, location)
        self._built[node] = None
        if isinstance(node, yaml.MappingNode):
            marked = self._mapping(node, location)
        elif isinstance(node, yaml.SequenceNode):
            marked = self._list(node, location)
        else:
            assert isinstance(node, yaml.ScalarNode)
            marked = self._scalar(node, location)
        self._built[node] = marked
        return marked

    def _refuse(self, message: str, node: yaml.Node, location: Location) -> Marked:
        line = node.start_mark.line + 1
        self.problems.append(Problem(message, location, line))
        return Marked(line)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> Marked:
        if node.tag != _TAG + "map":
            return self._refuse(_forbidden(node.tag), node, location)
        children: dict[str | int, tuple[int, Marked]] = {}
        merged: list[Marked] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key should be a string", key, location)
            elif not _is_unicode(key.value):
                self._refuse("is not valid Unicode text", key, (*location, key.value))
            elif key.tag == _TAG + "merge":
                merged += self._merged(value, location)
            elif key.value in children:
                first = children[key.value][0]
                self._refuse(f"is already given on line {first}", key, (*location, key.value))
            else:
                # A key is its text, be it written 3.5, on or null: all keys are names here.
                children[key.value] = line, self.build(value, (*location, key.value))
        for other in merged:
            children = {**other.children, **children}
        plain = {key: child.plain for key, (_, child) in children.items()}
        return Marked(node.start_mark.line + 1, plain, children)

    def _merged(self, node: yaml.Node, location: Location) -> list[Marked]:
        """What `<<` takes in; of two that have a key, the earlier one's counts."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if all(isinstance(each, yaml.MappingNode) for each in nodes):
            return [self.build(each, location) for each in nodes]
        self._refuse("<< takes a mapping or a list of mappings", node, location)
        return []

    def _list(self, node: yaml.SequenceNode, location: Location) -> Marked:
        if node.tag != _TAG + "seq":
            return self._refuse(_forbidden(node.tag), node, location)
        items = [self.build(item, (*location, index)) for index, item in enumerate(node.value)]
        children: dict[str | int, tuple[int, Marked]] = {index: (item.line, item) for index, item in enumerate(items)}
        return Marked(node.start_mark.line + 1, [item.plain for item in items], children)

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> Marked:
        text, tag = node.value, node.tag
        if "$" in text:
            try:
                text = expand(text, self._environ)
            except ValueError as error:
                return self._refuse(str(error), node, location)
            if node.style is None and tag == _TAG + "str":
                # As if the value had been written here: port: ${PORT:-8080} is a number. In quotes it stays a string.
                tag = self._resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if not _is_unicode(text):
            return self._refuse("is not valid Unicode text", node, location)
        try:
            return Marked(node.start_mark.line + 1, _value(tag.removeprefix(_TAG), text))
        except KeyError:
            return self._refuse(_forbidden(tag), node, location)
        except ValueError:
            # As it is written: what stands for a variable may be a secret.
            return self._refuse(f"{node.value[:40]} is no !!{tag.removeprefix(_TAG)}", node, location)


def _is_unicode(text: str) -> bool:
    """Escapes in the file, and bytes in the environment, can make half a surrogate pair: that is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _forbidden(tag: str) -> str:
    return f"the tag {tag.replace(_TAG, '!!')} is not allowed"


def _value(kind: str, text: str) -> str | int | float | bool | None:
    """The value of a scalar. Raises KeyError for a kind that is not plain, ValueError where the text does not fit."""
    match kind:
        case "str":
            return text
        case "int":
            # Base 0 would refuse 007.
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "bool" if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "bool":
            raise ValueError(text)
        case "null":
            return None
    raise KeyError(kind)
