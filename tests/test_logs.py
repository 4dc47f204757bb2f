"""One record is one line, whatever is in it, and a record about a request quotes nothing of it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlx_roster.config.settings import LogSettings
from mlx_roster.console import Display
from mlx_roster.logs import JsonLines, TextLines, fields, outline, printable, written
from mlx_roster.registry import Listing
from mlx_roster.workers.listening import Listener

NASTY = "a\nb\r\n\x1b[2Jc\x9b31m\u202ed\u2028e\x7f\ud800f\x00\u0085g"


def record(message: str, error: BaseException | None = None, **about: Any) -> logging.LogRecord:
    raised = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("mlx_roster.x", logging.WARNING, __file__, 1, "%s", (message,), raised)
    made.__dict__.update(fields(**about))
    return made


def failure(words: str = "secret") -> Exception:
    """As it is when it is logged: with another before it."""
    try:
        try:
            int(words)
        except ValueError as error:
            raise KeyError(words) from error
    except KeyError as error:
        return error


def test_json_has_the_records_fields_and_is_one_line_of_ascii() -> None:
    line = JsonLines().format(record("hello", event="request", status=200, caller=None, ms=1.5))
    assert (
        json.loads(line).items()
        >= {
            "level": "WARNING",
            "logger": "mlx_roster.x",
            "message": "hello",
            "event": "request",
            "status": 200,
            "ms": 1.5,
        }.items()
    )
    assert "caller" not in line
    assert json.loads(line)["time"].endswith("Z")
    assert len(json.loads(line)["time"]) == len("2026-03-01T11:07:33.412Z")


@given(st.text(st.characters(), max_size=50))
def test_nothing_that_is_logged_breaks_a_line(text: str) -> None:
    for about in ({}, {"request_id": text, "path": text}):
        line = JsonLines().format(record(text, **about))
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["message"] == text
        said = TextLines().format(record(text, **about))
        assert all(part.isprintable() for part in said.split("\n"))
        assert all(part.startswith("    ") for part in said.split("\n")[1:])


def test_what_no_terminal_must_see_is_escaped() -> None:
    said = printable(NASTY)
    assert said.isprintable()
    assert said.startswith("a\\nb\\r\\n\\x1b[2Jc\\x9b31m\\u202e")
    assert printable("Überraschung, 東京 🙂") == "Überraschung, 東京 🙂"
    assert written("a b") == '"a b"'
    assert written(NASTY).isprintable()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), object(), {1, 2}])
def test_any_value_can_be_a_field(value: object) -> None:
    assert isinstance(json.loads(JsonLines().format(record("hello", value=value)))["value"], str)


def test_a_field_cannot_pass_for_what_every_record_has() -> None:
    line = json.loads(JsonLines().format(record("hello", level="DEBUG", time="never")))
    assert line["level"] == "WARNING"
    assert line["time"] != "never"


@pytest.mark.parametrize("lines", [JsonLines, TextLines])
def test_an_exception_of_a_request_is_told_without_its_words(lines: type[JsonLines] | type[TextLines]) -> None:
    of_a_request, of_none = record("no", failure(), request_id="one"), record("no", failure())
    told = lines().format(of_a_request)
    assert "secret" not in told
    assert "ValueError" in told
    assert "KeyError" in told
    assert "test_logs.py" in told
    assert "secret" in lines().format(of_none)
    assert "secret" in lines(words=True).format(of_a_request)


def test_an_outline_ends_also_where_exceptions_are_each_others_cause() -> None:
    one, other = ValueError("secret"), KeyError("secret")
    one.__cause__, other.__cause__ = other, one
    assert outline(one).partition("\n")[2].split() == ["KeyError", "and", "so", "ValueError"]


@contextmanager
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("mlx_roster")
    before = (root.level, list(root.handlers), ours.level)
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        ours.setLevel(before[2])


@pytest.mark.parametrize(
    ("terminal", "flag", "setting", "form"),
    [
        (True, None, "auto", "rich"),
        (False, None, "auto", "json"),
        (False, None, "text", "text"),
        (True, None, "text", "rich"),
        (True, None, "json", "json"),
        (True, "json", "text", "json"),
        (False, "text", "json", "text"),
        (False, "auto", "text", "json"),
    ],
)
def test_the_form_of_the_log(terminal: bool, flag: Any, setting: Any, form: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with logging_as_it_was(), Display(log_format=flag, console=console) as display:
        display.configure(LogSettings(format=setting))
        logging.getLogger("mlx_roster.x").info("hello")
        display.ready("http://127.0.0.1:1", [])
    first, *rest = out.getvalue().splitlines()
    if form == "json":
        assert json.loads(first)["message"] == "hello"
        assert [json.loads(line)["message"] for line in rest] == ["ready at http://127.0.0.1:1/v1"]
    elif form == "text":
        assert first.endswith(" INFO hello")
        assert rest[-1] == "ready at http://127.0.0.1:1/v1"
    else:
        assert "hello" in first
        assert not first.startswith("{")
        assert any("Ready at" in line for line in rest)


@pytest.mark.parametrize(
    ("url", "invitation", "line"),
    [
        ("http://127.0.0.1:8080", (), "mlx-roster chat atlas"),
        ("http://[::1]:9000", (), "mlx-roster chat atlas --url 'http://[::1]:9000'"),
        (
            "http://127.0.0.1:8080",
            ("atlas:pirate", "--prompt", "Is it so?"),
            "mlx-roster chat atlas:pirate --prompt 'Is it so?'",
        ),
    ],
)
def test_a_terminal_is_told_what_to_try(url: str, invitation: tuple[str, ...], line: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=30)
    with logging_as_it_was(), Display(console=console, invitation=invitation) as display:
        display.ready(url, [Listing("atlas", None, 0, (), (), "unloaded", None, None, 0, 0, False, None)])
    assert f"    {line}" in re.sub(r"\x1b\[\d*m", "", out.getvalue()).splitlines()


def test_the_form_may_change_while_it_runs() -> None:
    out = io.StringIO()
    with logging_as_it_was(), Display(console=Console(file=out)) as display:
        for form in ("json", "text", "json"):
            display.configure(LogSettings(format=form))
            logging.getLogger("mlx_roster.x").info("hello")
    assert [line.startswith("{") for line in out.getvalue().splitlines()] == [True, False, True]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_a_workers_record_goes_on_as_what_it_is(heard: pytest.LogCaptureFixture) -> None:
    listener = Listener(4711)
    listener.name = "atlas"
    listener.take(JsonLines().format(record("it fails", failure(), request_id="one", pid=1, model="other")).encode())
    (again,) = heard.records
    assert (again.name, again.levelno) == ("mlx_roster.x", logging.WARNING)
    assert again.getMessage() == "atlas[4711]: it fails"
    line = json.loads(JsonLines().format(again))
    assert (line["model"], line["pid"], line["request_id"]) == ("atlas", 4711, "one")
    assert "KeyError" in line["exception"]
    assert "KeyError" in TextLines().format(again)
    assert listener.last_words.startswith("it fails\n")


@pytest.mark.parametrize(
    "line",
    [b"a library's warning", b'{"time": "no JSON', b'{"time": "x", "level": 1}', b'{"time": "x"}', b"[]", b"\xff"],
)
def test_what_others_write_is_for_debugging(heard: pytest.LogCaptureFixture, line: bytes) -> None:
    listener = Listener(4711)
    listener.take(line + b"\n")
    (again,) = heard.records
    assert again.levelno == logging.DEBUG
    assert again.getMessage() == f"spare[4711]: {line.decode(errors='replace')}"
    assert listener.last_words == line.decode(errors="replace")


def test_a_librarys_record_is_for_debugging_too(heard: pytest.LogCaptureFixture) -> None:
    other = logging.LogRecord("transformers", logging.ERROR, __file__, 1, "oh", (), None)
    Listener(1).take(JsonLines().format(other).encode())
    assert [(one.levelno, one.getMessage()) for one in heard.records] == [(logging.DEBUG, "spare[1]: oh")]


def test_the_words_of_a_panic_are_left_out(heard: pytest.LogCaptureFixture) -> None:
    listener = Listener(1)
    lines = [
        "thread '<unnamed>' panicked at src/lib.rs:1:2:",
        "cannot read 'secret'",
        "nor this secret",
        "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
        "after it",
    ]
    for line in lines:
        listener.take(line.encode() + b"\n")
    assert "secret" not in heard.text
    assert listener.last_words == f"{lines[0]}\nafter it"
    assert "after it" in heard.text
    listener.take(b"thread '<unnamed>' panicked at src/lib.rs:1:2:\n")
    listener.take(b"secret\n")
    listener.take(JsonLines().format(record("a request failed")).encode())
    listener.take(b"and more\n")
    assert "secret" not in heard.text
    assert "and more" in heard.text
