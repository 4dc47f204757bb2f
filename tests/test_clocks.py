"""The wall clock jumps: it is set by people and by the network. Nothing that is decided may hang on it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlx_roster

PACKAGE = Path(mlx_roster.__file__).parent

#: Names that tell the time of day, by the module that has them.
WALL = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}

#: Where it may be asked, and for what: dates that others read, and one that the Hub has said.
ALLOWED = {
    "cli/operating.py": 1,  # the time of day before what `top` prints of a change
    "loaders/asking.py": 1,  # a Retry-After that is a date; never waited for longer than a minute
    "registry/registry.py": 1,  # `created` of /v1/models
    "server/openai/shapes.py": 1,  # `created` of an answer
}


def asked(tree: ast.AST) -> Iterator[str]:
    """Every place where the wall clock is read, or taken from its module under another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            module = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if node.attr in WALL.get(module, ()):
                yield f"line {node.lineno}: {module}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"line {node.lineno}: {one.name}" for one in node.names if one.name in WALL["time"])


def test_what_is_decided_does_not_hang_on_the_wall_clock() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): places
        for path in PACKAGE.rglob("*.py")
        if (places := list(asked(ast.parse(path.read_text()))))
    }
    assert {path: len(places) for path, places in found.items()} == ALLOWED, found


def test_the_test_sees_what_it_is_for() -> None:
    code = """
import time, datetime
from time import time as now, monotonic
a = time.time() + time.monotonic()
b = datetime.datetime.now() or datetime.date.today()
"""
    assert len(list(asked(ast.parse(code)))) == 4
