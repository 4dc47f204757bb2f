"""YAML itself: what it may hold, where its lines are, and what comes from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_roster.config.load import parse
from mlx_roster.errors import ConfigError
from tests.config.rosters import BASE, MINIMAL, problems, read


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "roster.yaml: the file is empty"),
        ("# only a comment\n", "roster.yaml: the file is empty"),
        ("\n- atlas\n", "roster.yaml:2: should be a mapping with the key models"),
        ("atlas", "roster.yaml:1: should be a mapping with the key models"),
        ("null", "roster.yaml:1: should be a mapping with the key models"),
        ("{}", "roster.yaml:1: models: is required, unless unlisted or discover allow other models"),
        ("models: {}", "roster.yaml:1: models: is required, unless unlisted or discover allow other models"),
        ("unlisted: {}", "roster.yaml:1: models: is required, unless unlisted or discover allow other models"),
        ("models: [a]", "roster.yaml:1: models: should be a mapping"),
        ("models: {a: ./a}", "roster.yaml:1: models.a: should be a mapping"),
        ("models: {a: {}}", "roster.yaml:1: models.a.source: is required"),
        ("models:\n  a: {source: ./a\n", "roster.yaml:3: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("models:\n\ta: 1\n", "roster.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: b: c", "roster.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "roster.yaml:2: not valid YAML: but found another document"),
        ("a: *b", "roster.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\nb: \x07", "roster.yaml:2: not valid YAML: a control character"),
        ('"\\UFFFFFFFF": 1', "roster.yaml: not valid YAML: it has an escape or a number that is out of range"),
        ("[" * 5000, "roster.yaml: not valid YAML: nested too deeply"),
        ("a: &a [*a]", "roster.yaml:1: a[0]: an alias may not lie within its own anchor"),
        ("&a {<<: *a}", "roster.yaml:1: an alias may not lie within its own anchor"),
        ("{[a]: 1}", "roster.yaml:1: a key should be a string"),
        ("{<<: 1}", "roster.yaml:1: << takes a mapping or a list of mappings"),
        ("!!set {a}", "roster.yaml:1: the tag !!set is not allowed"),
        ("a: !!omap [b: 1]", "roster.yaml:1: a: the tag !!omap is not allowed"),
        ("a: !!binary aGk=", "roster.yaml:1: a: the tag !!binary is not allowed"),
        ("a: !!int x", "roster.yaml:1: a: x is no !!int"),
        ("a: !!bool x", "roster.yaml:1: a: x is no !!bool"),
        ("a: " + "9" * 5000, "roster.yaml:1: a: " + "9" * 40 + " is no !!int"),
    ],
)
def test_what_is_no_roster(text: str, problem: str) -> None:
    assert problems(text)[0] == problem


def test_plain_words_are_words_and_keys_are_their_text() -> None:
    text = "models: {on: {source: ./a, aliases: [no, y, 2024-01-01]}, 3.5: {source: ./b}, null: {source: ./c}}"
    roster = read(text)
    assert list(roster.models) == ["on", "3.5", "null"]
    assert list(roster.models["on"].aliases) == ["no", "y", "2024-01-01"]


def test_numbers_in_all_their_spellings() -> None:
    roster = read(
        f"server: {{port: 0x1F90, request_limit: 0o10}}\ndefaults: {{top_k: 007, temperature: 1e-1}}\n{MINIMAL}"
    )
    assert (roster.server.port, roster.server.request_limit) == (8080, 8)
    assert (roster.defaults.top_k, roster.defaults.temperature) == (7, 0.1)


def test_anchors_and_merge_keys() -> None:
    text = """\
        models:
          a: &a
            source: ./a
            max_context: 1
            defaults: &cold {temperature: 0}
          b: &b {<<: *a, max_context: 2, aliases: &names [bee]}
          c: {<<: [*b, *a], source: ./c, aliases: []}
          d: {source: ./d, defaults: *cold}
    """
    models = read(text).models
    assert [entry.max_context for entry in models.values()] == [1, 2, 2, None]
    assert [Path(entry.source).name for entry in models.values()] == ["a", "a", "c", "d"]
    assert {entry.defaults.temperature for entry in models.values()} == {0}


def test_a_problem_in_a_merged_value_has_its_own_line() -> None:
    text = """\
        models:
          a: &a
            source: ./a
            max_context: 0
          b:
            <<: *a
            max_adaptors: 1
    """
    assert problems(text) == [
        "roster.yaml:4: models.a.max_context: should be greater than or equal to 1",
        "roster.yaml:4: models.b.max_context: should be greater than or equal to 1",
        'roster.yaml:7: models.b.max_adaptors: unknown key, did you mean "max_adapters"?',
    ]


def test_aliases_that_would_explode_do_not() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 40))
    assert len(problems(f"l0: &l0 [lol]\n{levels}\n{MINIMAL}")) == 40


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSTER_TEST_PORT", "9000")
    monkeypatch.setenv("ROSTER_TEST_NAME", "atlas")
    monkeypatch.delenv("ROSTER_TEST_NOT_SET", raising=False)
    text = """\
        server: {port: "${ROSTER_TEST_NOT_SET:-8081}"}
        models:
          atlas: {source: "./${ROSTER_TEST_NAME}", aliases: ["${ROSTER_TEST_NAME}-1"]}
    """
    assert problems(text) == ["roster.yaml:1: server.port: should be a whole number"]
    server = "\n          port: ${ROSTER_TEST_PORT}\n          strict_fields: ${ROSTER_TEST_NOT_SET:-true}"
    roster = read(text.replace('{port: "${ROSTER_TEST_NOT_SET:-8081}"}', server))
    assert (roster.server.port, roster.server.strict_fields) == (9000, True)
    assert roster.models["atlas"].source == BASE / "atlas"
    assert list(roster.models["atlas"].aliases) == ["atlas-1"]


def test_a_variable_within_braces_needs_quotes() -> None:
    assert problems("server: {port: ${PORT}}") == [
        "roster.yaml:1: not valid YAML: expected ',' or '}', but got '{'; "
        "within { } or [ ] a variable needs quotes, and a line of its own to be a number"
    ]


def test_variables_are_not_expanded_in_names() -> None:
    (problem,) = problems("models: {'${HOME}': {source: ./a}}")
    assert problem.startswith("roster.yaml:1: models.${HOME}: should be a name")


def test_no_character_of_a_file_reaches_the_report_raw() -> None:
    text = r'{"a\n\e[31m": 1, "\ud800": 2, "b": "\ud800", models: {a: {source: "b\n"}}}'
    report = "\n".join(problems(text))
    assert r"a\n\x1b[31m: unknown key" in report
    assert r"\ud800: is not valid Unicode text" in report
    assert "b: is not valid Unicode text" in report
    assert report.count("\n") == 3
    assert "\x1b" not in report


_WORDS = """models source aliases adapters server port memory budget defaults default_model a ./a org/b 75% 1GiB
${HOME} ${NO:-8} ${ $$ << *x &x !!str !!set !!int ~ null 1 -1.5 .nan 0x true
[] {} [ ] { } : - , ? | > ' " # --- ... %YAML \\ é"""
_roster_like = st.lists(
    st.sampled_from([*_WORDS.split(), "\n", "\n  ", "\n    ", "\t", "\x00", "\r", "\ufeff", "\x85"]), max_size=30
).map(" ".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), _roster_like, _roster_like.map(lambda text: f"models: {{a: {{source: ./a}}}}\n{text}")))
def test_any_text_is_a_roster_or_a_config_error(text: str) -> None:
    try:
        roster = parse(text, name="roster.yaml", base=BASE)
    except ConfigError as error:
        lines = error.message.splitlines()
    else:
        lines = [f"roster.yaml: {len(roster.models)} models"]
    assert lines
    assert all(line.startswith("roster.yaml:") for line in lines)
