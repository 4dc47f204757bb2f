"""Patterns without what a string cannot say: what fits them is what fitted before."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from mlx_roster.engine.patterns import UNSAYABLE, sayable
from mlx_roster.engine.schemas import enforceable

#: Expressions that mean the same to Python.
PATTERNS = [
    '^[^"]*$',
    r"^[^\\]*$",
    r'^[^"\\]+$',
    '^[^\\n"]*$',
    r"^[\x00-\x20]*$",
    r"^[\x00-\x1f]{2}$",
    r"^[\s\S]*$",
    r'^(?:[^"]|b)*$',
    '^"[^"]*"$',
    r"^[^\]]*$",
    r"^[^]a]*$",
    r"^[-\]\\]+$",
    r"^\[[^a\]]?\]?$",
    r"^\\?[^\W]$",
    r"^(\x00|a)$",
    r"^[\x7fa]*$",
    r"^\(?x\)?$",
    r"^\x41?\t$",
    r"^.*\W$",
    "a",
    "^[^a]$",
]


def takes(pattern: str, text: str) -> bool:
    schema = enforceable({"type": "string", "pattern": pattern}, "the schema", "response_format")
    tokens = LLTokenizer("byte")
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(schema), log_level=0)
    said = list(json.dumps(text, ensure_ascii=False).encode())
    return matcher.try_consume_tokens(said) == len(said) and matcher.is_accepting()


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=40, deadline=None)
@given(text=st.text('"\\ab]x[A(\n\t\x80\U0001f389 ', max_size=3))
def test_a_string_is_taken_where_it_fits(pattern: str, text: str) -> None:
    assert takes(pattern, text) == bool(re.search(pattern.replace("$", r"\Z"), text, re.ASCII)), text


@settings(deadline=None)
@given(text=st.text(max_size=8))
def test_any_literal_stays_itself(text: str) -> None:
    if not UNSAYABLE.search(text):
        assert takes(f"^{re.escape(text)}$", text)


@pytest.mark.parametrize("pattern", ["^[a-z0-9_.-]+$", r"^\d{3}-\w+\s?$", r"\[a\]", "a|b", "", "[", "(", "[a"])
def test_what_has_none_of_it_is_left_alone(pattern: str) -> None:
    assert sayable(pattern) == pattern
