"""JSON Schemas of requests, before they become grammars: what cannot be enforced is refused by name, never left out.

For the thread that compiles. References are followed inside a schema only; nothing is fetched.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher, LLParserLimits

from mlx_roster.engine.patterns import UNSAYABLE, followed, sayable
from mlx_roster.errors import InvalidRequest

#: A schema's text has at most so many bytes.
SIZE = 64 * 2**10

#: How deep a schema may be nested when every `$ref` is followed once, one behind the other: llguidance recurses that
#: far, and 3 kB of the thread's stack go with every level.
DEPTH = 1200

#: How many `pattern` and `format` a schema may have that joins schemas: in the worst case each is intersected with all
#: others, and compiling takes four times as long with every one of them.
JOINED = 8

#: Each of `patternProperties` is compared with all others, and a `multipleOf` has as many states as its digits say.
PATTERNS = 32
MULTIPLE = 10_000

#: Bounds beyond this are not exact for llguidance, and crash it if they have more than 64 bits.
EXACT = 2**53
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

#: What a compiled grammar may take: the defaults, by which no step takes more than some 15 ms, but fewer of a lexer's
#: states, which are 1 to 2 kB each.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

#: Between the parts of JSON there may be a blank, or a line break with an indentation: enough for either style, and too
#: little for a model that has begun to say whitespace to go on with it. Without \u, which the model does not need, no
#: property has a second spelling that its schema would not see.
_STYLE = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r" |\n {0,16}",
    "json_allowed_escapes": 'nrtbf\\"',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}

#: Each `pattern` is tried by itself, and all of a schema in about so many seconds: one that comes to nothing, or is too
#: complex, mostly shows it then. An answer that meets one later ends with an error.
TRYING = 0.5

#: Where schemas are inside of a schema: as a keyword's value, in a list, and in an object by names.
_ONE = frozenset(("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains"))
_LISTED = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))

#: Keywords that ask for something: a name that is nearly one of these is taken for a slip, and any other for a note.
_ASKING = _ONE | _LISTED | _NAMED
_ASKING |= {"type", "enum", "const", "$ref", "required", "dependentRequired", "propertyNames", "format", "pattern"}
_ASKING |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
_ASKING |= {"minItems", "maxItems", "uniqueItems", "minContains", "maxContains", "minProperties", "maxProperties"}
_ASKING |= {"unevaluatedItems", "unevaluatedProperties"}
_NOTES = frozenset(("title", "description", "default", "example", "examples", "id", "$id", "$anchor"))

#: What llguidance says of a schema, and what clients are told.
_SAID = (
    (r"Unimplemented keys: \[(?P<a>.*)\]", "it uses {a}"),
    (r"oneOf constraints", "it uses 'oneOf' with branches that no type or constant tells apart"),
    (r"Unknown format: (?P<a>.*)", "it uses 'format' {a!r}"),
    (r"Invalid type: (?P<a>.*)", "its 'type' {a!r} is none of JSON Schema's"),
    (r"Pointer '(?P<a>.*)' does not exist", "its '$ref' to {a!r} leads nowhere"),
    (r"Resource '(?P<a>.*)' is not present", "its '$ref' or '$id' {a!r} lies outside, and nothing is fetched"),
    (r"circular references", "its '$ref' leads back to itself beside other keywords"),
    (r"nested parentheses", "it is too complex"),
    (r"(?s)regex parse error:.*error: (?P<a>.*)", "its 'pattern': {a}"),
    (r"patternProperty regexes", "its 'patternProperties' overlap"),
    (r"Failed to generate regex for", "its 'minimum' and 'maximum' are too far apart"),
    (r"min/maxProperties", "it uses 'minProperties' or 'maxProperties' beside optional properties"),
    (r"recursion limit", "it is nested too deeply"),
    (r"NoExtension", "nothing fits it"),
    (r"Regex is empty", "nothing fits it"),
    (r"Unsatisfiable schema: (?P<a>.*)", "nothing fits it ({a})"),
    (r"(?i)too (large|complex|many|big)|fuel|determine if regex|limit|current row", "it is too complex"),
)


def parsed(text: str, what: str, param: str) -> Any:
    """A schema from its text, which is checked for being JSON and for its size only."""
    if len(text.encode()) > SIZE:
        raise InvalidRequest(f"{what} is larger than {SIZE // 2**10} KiB", param=param)
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise InvalidRequest(f"{what} is nested too deeply", param=param) from error
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON", param=param) from error


def enforceable(schema: Any, what: str, param: str) -> str:
    """The schema as a Lark grammar's `%json` takes it.

    Raises InvalidRequest that says why `what` cannot be enforced.
    """
    try:
        problem = _limited(schema)
        if problem is None:
            text = _text({} if schema is True else _exact(schema))
            problem = _refused(schema, text)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = explained(str(error))
    except BaseException as error:
        # A panic of Rust is no Exception, and has a class that cannot be imported.
        if type(error).__module__ != "pyo3_runtime":
            raise
        problem = "it is too complex"
    if problem is not None:
        raise InvalidRequest(f"{what} cannot be enforced: {problem}", param=param)
    return text


def explained(problem: str) -> str:
    """What llguidance says of a schema or its grammar, for clients."""
    for pattern, said in _SAID:
        match = re.search(pattern, problem)
        if match is not None:
            return said.format(**{name: text.replace('"', "'") for name, text in match.groupdict().items()})
    return problem.strip().splitlines()[0][:200]


def _text(schema: dict[str, Any]) -> str:
    # What a schema itself says to llguidance is not heard.
    return json.dumps({**schema, "x-guidance": _STYLE}, allow_nan=False)


def _exact(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy that llguidance takes for what it means."""
    copied: dict[str, Any] = json.loads(json.dumps(schema))
    for node in _reached(copied):
        for keyword in [keyword for keyword, value in node.items() if _idle(keyword, value)]:
            del node[keyword]
        if isinstance(node.get("pattern"), str):
            node["pattern"] = sayable(node["pattern"])
        if isinstance(named := node.get("patternProperties"), dict):
            node["patternProperties"] = {sayable(name): inside for name, inside in named.items()}
    return copied


def _idle(keyword: str, value: Any) -> bool:
    """Whether a keyword that cannot be enforced asks for nothing as it is."""
    match keyword:
        case "uniqueItems" | "not":
            return value is False
        case "propertyNames" | "unevaluatedItems" | "unevaluatedProperties":
            return value is True or bool(value == {})
        case "dependentRequired" | "dependentSchemas":
            return bool(value == {})
    return False


def _refused(schema: Any, text: str) -> str | None:
    """What llguidance says of a schema, whose `text` is as it takes it."""
    found = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text), limits=LIMITS)
    # Where nothing fits a pattern, that is what is wrong.
    tried = _tried(schema) if not found or "Unsatisfiable" in found else None
    return tried or (explained(found) if found else None)


def _tried(schema: Any) -> str | None:
    """What comes of a pattern only once it is followed."""
    until = time.monotonic() + TRYING
    for node in _reached(schema):
        if time.monotonic() > until:
            break
        if "pattern" not in node or "string" not in node.get("type", "string"):
            continue
        alone = {key: value for key, value in node.items() if key in ("pattern", "minLength", "maxLength")}
        found = followed(_text(_exact(alone | {"type": "string"})), LIMITS)
        if found:
            return f"its 'pattern' {node['pattern'][:60]!r}: {explained(found)}"
    return None


def _limited(schema: Any) -> str | None:
    """What is wrong with a schema that llguidance would take, or would take too long over."""
    if schema is True:
        return None
    if not isinstance(schema, dict):
        return "it must be an object"
    nodes = _reached(schema)
    problems = (
        _slip(nodes),
        _depth(schema, nodes),
        _unsayable(nodes),
        _patterns(nodes),
        _numbers(schema, nodes),
        _joined(nodes),
    )
    return next((problem for problem in problems if problem is not None), None)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas inside."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            inside = list(value.values())
        elif keyword in _LISTED and isinstance(value, list):
            inside = value
        else:
            inside = [value] if keyword in _ONE else []
        for one in inside:
            yield from _nodes(one)


def _reached(schema: Any) -> list[dict[str, Any]]:
    """The schema and all schemas inside, also where only a `$ref` leads to."""
    found = {id(node): node for node in _nodes(schema)}
    waiting = list(found.values())
    while waiting:
        ref = waiting.pop().get("$ref")
        target = _at(schema, ref) if isinstance(ref, str) else None
        if id(target) not in found:
            led = {id(node): node for node in _nodes(target)}
            waiting += led.values()
            found |= led
    return list(found.values())


def _slip(nodes: list[dict[str, Any]]) -> str | None:
    for name in dict.fromkeys(itertools.chain.from_iterable(nodes)):
        if name not in _ASKING | _NOTES:
            near = difflib.get_close_matches(name, _ASKING, n=1, cutoff=0.8)
            if near:
                return f"it has {name!r}; did you mean {near[0]!r}?"
    return None


def _depth(schema: dict[str, Any], nodes: list[dict[str, Any]]) -> str | None:
    # A reference by anything but a pointer may lead anywhere.
    led = [_at(schema, ref) for node in nodes if isinstance(ref := node.get("$ref"), str)]
    depth = _levels(schema) + sum(map(_levels, {id(target): target for target in led}.values()))
    return "it is nested too deeply" if depth > DEPTH else None


def _at(schema: dict[str, Any], ref: str) -> Any:
    found: Any = schema
    for step in ref.removeprefix("#").split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return schema
    return found


def _levels(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inside), default=0)


def _unsayable(nodes: list[dict[str, Any]]) -> str | None:
    """Constants cannot have such characters. Names can, but a pattern of names would not see them."""
    for node, keyword in itertools.product(nodes, ("const", "enum")):
        if any(map(UNSAYABLE.search, _texts(node.get(keyword)))):
            return f"its {keyword!r} has a control character that JSON writes as \\u only"
    for node in nodes:
        if "patternProperties" in node:
            named = (node.get("properties"), node.get("required"))
            names = [list(names) for names in named if isinstance(names, dict | list)]
            if any(map(UNSAYABLE.search, _texts(names))):
                return "it uses 'patternProperties' beside a name with a control character"
    return None


def _texts(value: Any) -> Iterator[str]:
    """All strings inside, but for names."""
    if isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _texts(inside)
    elif isinstance(value, str):
        yield value


def _patterns(nodes: list[dict[str, Any]]) -> str | None:
    count = sum(len(node["patternProperties"]) for node in nodes if isinstance(node.get("patternProperties"), dict))
    return f"it has more than {PATTERNS} 'patternProperties'" if count > PATTERNS else None


def _numbers(schema: Any, nodes: list[dict[str, Any]]) -> str | None:
    for node, keyword in itertools.product(nodes, _BOUNDS):
        if keyword in node and any(abs(value) > EXACT for value in _values(node[keyword])):
            return f"its {keyword!r} is larger than 2^53"
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in _values(schema)):
        return "one of its numbers has more than 64 bits"
    multiples = (value for node in nodes for value in _values(node.get("multipleOf")))
    if any(not 0 < _unscaled(value) <= MULTIPLE for value in multiples):
        return f"its 'multipleOf' must be above 0 and, without its decimal point, at most {MULTIPLE}"
    return None


def _values(value: Any) -> Iterator[int | float]:
    """All numbers inside."""
    if isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _values(inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _unscaled(value: int | float) -> int:
    """Without the decimal point: 25 of 0.25."""
    sign, digits, _ = Decimal(str(value)).as_tuple()
    return int("".join(map(str, digits))) * (-1 if sign else 1)


def _joined(nodes: list[dict[str, Any]]) -> str | None:
    if not any(_joins(node) for node in nodes):
        return None
    joins = "it joins schemas ('allOf', or '$ref', 'anyOf', 'oneOf' beside other keywords) with too "
    if sum(keyword in node for node in nodes for keyword in ("pattern", "format")) > JOINED:
        return joins + "many 'pattern' or 'format'"
    multiples = {_unscaled(value) for node in nodes for value in _values(node.get("multipleOf"))}
    return joins + "large 'multipleOf'" if math.prod(multiples) > MULTIPLE else None


def _joins(node: dict[str, Any]) -> bool:
    """Whether a value must fit several schemas at once here."""
    whole = node.get("allOf")
    parts = len(whole) if isinstance(whole, list) else 0
    parts += sum(keyword in node for keyword in ("$ref", "anyOf", "oneOf"))
    parts += bool(_ASKING.difference(("type", "allOf", "$ref", "anyOf", "oneOf", "$defs", "definitions")) & node.keys())
    return parts > 1


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
