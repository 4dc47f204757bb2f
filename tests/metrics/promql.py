"""As much of PromQL as it takes to know which series a query is about."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: In the order in which they are tried.
TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<range>\[(?:\d+[smhdw])+\])
  | (?P<duration>\d+[smhdw](?![\w.]))
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<word>[a-zA-Z_:][\w:]*)
  | (?P<symbol>=~|!~|!=|==|>=|<=|[-+*/%^=<>(){},])
    """,
    re.X,
)

FUNCTIONS = frozenset({"rate", "increase", "histogram_quantile", "sum", "min", "max", "topk", "vector", "label_values"})
GROUPING = frozenset({"by", "without", "on", "ignoring"})
WORDS = frozenset({"or", "and", "unless", "offset", "bool"})

#: Of Grafana, by what may stand in their place.
VARIABLES = {"[$__rate_interval]": "[5m]", "$job": ".*", "$instance": ".*", "$model": ".*"}


@dataclass(frozen=True)
class Series:
    """One selector: its metric, the labels that it matches, and whether it looks at a range."""

    name: str
    labels: tuple[str, ...]
    ranged: bool


@dataclass(frozen=True)
class Query:
    series: tuple[Series, ...]
    #: All labels that results are grouped by.
    grouped: tuple[str, ...]


def tokens(text: str) -> list[tuple[str, str]]:
    """Raises AssertionError where a character belongs to none, or parentheses do not match."""
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    found, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        assert match is not None, f"not PromQL from here on: {text[position:]!r}"
        position = match.end()
        assert match.lastgroup is not None
        if match.lastgroup != "space":
            found.append((match.lastgroup, match.group()))
    depth = [0]
    for _, symbol in found:
        depth.append(depth[-1] + (symbol in ("(", "{")) - (symbol in (")", "}")))
    assert min(depth) == depth[-1] == 0, f"parentheses: {text!r}"
    return found


def parsed(text: str) -> Query:
    found = tokens(text)
    series, grouped, at = [], [], 0
    while at < len(found):
        kind, word = found[at]
        after = found[at + 1][1] if at + 1 < len(found) else ""
        at += 1
        if kind != "word" or word in WORDS:
            continue
        if word in GROUPING:
            end = found.index(("symbol", ")"), at)
            grouped += [name for sort, name in found[at:end] if sort == "word"]
            at = end + 1
        elif after == "(" or (after in GROUPING and word in FUNCTIONS):
            assert word in FUNCTIONS, f"an unknown function: {word}"
        else:
            labels: list[str] = []
            if after == "{":
                end = found.index(("symbol", "}"), at)
                labels = [found[place][1] for place in range(at, end) if found[place + 1][1] in ("=", "=~", "!=", "!~")]
                at = end + 1
            ranged = at < len(found) and found[at][0] == "range"
            series.append(Series(word, tuple(labels), ranged))
    return Query(tuple(series), tuple(grouped))
