"""Regular expressions of schemas, kept to what a JSON string can say without \\u. For the thread that compiles."""

from __future__ import annotations

import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

#: A string is followed for so many bytes.
FOLLOWED = 128

#: Characters that only \u can write. Of a literal llguidance leaves them out, and of a class that has them all it makes
#: one that has quotes and backslashes, too.
_RANGES = r"\x00-\x07\x0b\x0e-\x1f\x7f"
UNSAYABLE = re.compile(f"[{_RANGES}]")

#: One step of an expression, outside of a class.
_STEP = re.compile(
    r"\\(?:[pPxuU]\{[^}]*\}|[pP].|x..|u.{4}|U.{8}|.)|\(\?(?P<flags>[a-zA-Z-]+)[:)]|.", re.DOTALL | re.ASCII
)

#: How a class begins: a bracket that comes first is text. And a step inside: an escape is one.
_OPENING = re.compile(r"\[\^?(?:-+|\])?")
_INSIDE = re.compile(r"\\.|[^\\]", re.DOTALL)

#: Steps that may stand for an unsayable character, not counting those of which every set has quotes and backslashes.
_DOUBTFUL = re.compile(rf"\\[pPxuUav]|[{_RANGES}]|\[.*[\\^:{_RANGES}]", re.DOTALL)


def sayable(pattern: str) -> str:
    """The expression without unsayable characters: whatever fits it fits the original.

    Raises ValueError over one that cannot be read.
    """
    steps, at = [], 0
    while at < len(pattern):
        found = _STEP.match(pattern, at)
        if found is None or "x" in (found["flags"] or ""):
            raise ValueError("regex parse error: error: flag x is not supported")
        end = _class_end(pattern, at) if found[0] == "[" else found.end()
        step = pattern[at:end]
        steps.append(f"[{step}&&[^{_RANGES}]]" if _DOUBTFUL.match(step) else step)
        at = end
    return "".join(steps)


def followed(schema: str, limits: LLParserLimits) -> str:
    """What goes wrong with a string that goes on for as long as its schema lets it."""
    tokens = LLTokenizer("byte")
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(schema), log_level=0, limits=limits)
    for place in range(FOLLOWED):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ((1 << 256) - 1)
        if place:
            allowed &= ~(1 << ord('"'))
        if matcher.is_error() or not allowed:
            break
        matcher.consume_token((allowed & -allowed).bit_length() - 1)
    return (matcher.get_error() or "limit") if matcher.is_error() else ""


def _class_end(pattern: str, at: int) -> int:
    """Where a class ends that begins here, with those inside. One that does not end is for others to refuse."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "[":
            depth += 1
            opening = _OPENING.match(pattern, at)
            at = opening.end() if opening else at + 1
            continue
        depth -= pattern[at] == "]"
        step = _INSIDE.match(pattern, at)
        at = step.end() if step else at + 1
        if depth == 0:
            return at
    return at
