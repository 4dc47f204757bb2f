"""Chat templates that a roster brings, and the variables for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config.templates import LARGEST
from tests.config.rosters import problems, read, with_model

TEXT = """\
{%- for message in messages -%}
{%- if message.role == 'tool' %}{% continue %}{% endif -%}
{% generation %}{{ message.content | trim }}{% endgeneration %}
{%- endfor -%}
"""


def refusal(folder: Path, text: bytes) -> str:
    (folder / "broken.jinja").write_bytes(text)
    (problem,) = problems(with_model("chat_template: ./broken.jinja"), folder)
    assert problem.startswith("roster.yaml:4: models.atlas.chat_template: broken.jinja")
    return problem.removeprefix("roster.yaml:4: models.atlas.chat_template: broken.jinja")


def test_a_template_is_read_with_the_roster_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    file = tmp_path / "templates/short.jinja"
    file.write_text("\ufeff" + TEXT)
    text = with_model("chat_template: templates/short.jinja")
    roster = read(text, tmp_path)
    template = roster.models["atlas"].chat_template
    assert template is not None
    assert (template.path, template.text) == (file, TEXT)
    assert roster == read(text, tmp_path)
    file.write_text("{{ messages }}")
    assert roster != read(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"fine\n{% if x %}\n{{ y }\n", ", line 3: unexpected '}'"),
        (b"{% for m in messages %}\n", ", line 1: Unexpected end of template."),
        (b"\n{{ x | shorten_it }}", ", line 2: No filter named 'shorten_it'."),
        (b"{% generation %}", ", line 1: Unexpected end of template."),
        (b"{% frobnicate %}", ", line 1: Encountered unknown tag 'frobnicate'."),
        (b"one\ntw\xff", ", line 2: is not UTF-8 text"),
        (b"x" * (LARGEST + 1), " is larger than 1 MiB: that is no chat template"),
        (b"{{ " + b"(" * 5000, ": nested too deeply"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(tmp_path: Path, text: bytes, problem: str) -> None:
    assert refusal(tmp_path, text).startswith(problem)


def test_a_template_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert problems(with_model("chat_template: ./no.jinja"), tmp_path) == [
        "roster.yaml:4: models.atlas.chat_template: no.jinja cannot be read: No such file or directory"
    ]
    (tmp_path / "folder").mkdir()
    assert problems(with_model("chat_template: ./folder"), tmp_path) == [
        "roster.yaml:4: models.atlas.chat_template: folder cannot be read: Is a directory"
    ]
    assert problems(with_model("chat_template: 5"), tmp_path) == [
        "roster.yaml:4: models.atlas.chat_template: should be a string; put it in quotes"
    ]


def test_a_filter_that_transformers_adds_is_known(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ tools | tojson(indent=2) }}{{ raise_exception('no') }}")
    read(with_model("chat_template: t.jinja"), tmp_path)


def test_variables_for_it_are_any_mapping() -> None:
    args = read(with_model("chat_template_args: {a: 1, b: [x, {c: }], d: {e: 1.5}}")).models["atlas"].chat_template_args
    assert args == {"a": 1, "b": ["x", {"c": None}], "d": {"e": 1.5}}
    assert problems(with_model("chat_template_args: [a]")) == [
        "roster.yaml:4: models.atlas.chat_template_args: should be a mapping"
    ]
    assert problems(with_model("chat_template_args: {messages: 1}")) == [
        'roster.yaml:4: models.atlas.chat_template_args: has "messages", which is not for a template to be given'
    ]
    assert problems(with_model(f"chat_template_args: {{a: [{2**64}]}}")) == [
        "roster.yaml:4: models.atlas.chat_template_args: has a number that is too large"
    ]
