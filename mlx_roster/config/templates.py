"""Chat templates that a roster brings: read and parsed with it, so that a broken one is found before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo

from mlx_roster.config.paths import absolute, base_of, text_of

#: The longest of real models are below 30 kB.
LARGEST = 2**20


#: Names that mean something to what renders a template, and are no variables of it: tests/engine holds them to that.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "cycler",
        "dict",
        "documents",
        "joiner",
        "lipsum",
        "max_length",
        "messages",
        "namespace",
        "padding",
        "raise_exception",
        "range",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja file, and what was in it when the roster was read."""

    path: Path
    text: str


def read(path: Path) -> ChatTemplate:
    """The template in the file at `path`. Raises ValueError, which names the line where it is no Jinja."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(f"{path.name} cannot be read: {reason}") from error
    if len(raw) > LARGEST:
        raise ValueError(f"{path.name} is larger than {LARGEST // 2**20} MiB: that is no chat template")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: is not UTF-8 text") from error
    _parse(path.name, text)
    return ChatTemplate(path, text)


def _read(value: object, info: ValidationInfo) -> ChatTemplate:
    return value if isinstance(value, ChatTemplate) else read(absolute(text_of(value), base_of(info.context)))


def _path(template: ChatTemplate) -> str:
    return str(template.path)


ChatTemplateFile = Annotated[ChatTemplate, PlainValidator(_read, json_schema_input_type=str), PlainSerializer(_path)]


def _parse(name: str, text: str) -> None:
    # Imported here: most rosters have no template, and everything else that reads them does without Jinja.
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """What transformers knows beside Jinja's own: it marks what a model says, and changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = Environment(extensions=["jinja2.ext.loopcontrols", Generation])
    try:
        # Compiled, not only parsed: an unknown filter, or a break outside of a loop, is found by the compiler.
        environment.compile(text)
    except TemplateSyntaxError as error:
        raise ValueError(f"{name}, line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ValueError(f"{name}: nested too deeply") from error
