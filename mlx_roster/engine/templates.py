"""Chats to token ids by a chat template, the model's own or the roster's. Never touches mlx."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mlx_roster.errors import InvalidRequest

Messages = Sequence[dict[str, Any]]

#: What a chat template may raise over messages it was not made for, besides its own TemplateError.
UNFIT = (AttributeError, LookupError, TypeError, ValueError)

#: What transformers gives templates besides variables.
_FUNCTIONS = frozenset({"raise_exception", "strftime_now", "namespace", "dict", "range", "lipsum", "cycler", "joiner"})

#: Characters from which on tokenizing a chat takes so long that rendering it twice does not matter.
_LARGE = 2**16

#: Names that mean something to what renders a template, and never reach it.
RESERVED = (
    frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"kwargs"}
    | {"messages", "conversations"}
    | _FUNCTIONS
)


class Options(NamedTuple):
    """What a template looks at besides the messages."""

    tools: list[dict[str, Any]] | None = None
    args: Mapping[str, Any] = {}


class Template:
    """Renders chats with a model's chat template, or with `source` in its place, which `args` are given to as well.

    Text that may be large goes to `weigh`, which raises if it is not worth tokenizing.
    """

    def __init__(
        self, tokenizer: Any, source: str | None, args: Mapping[str, Any], weigh: Callable[[str], object] = len
    ) -> None:
        self._tokenizer = tokenizer
        self._weigh = weigh
        self._given = source
        self._args = args
        self.source = source or _source(tokenizer)

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._given is not None or bool(self._tokenizer.has_chat_template)

    @property
    def takes_tools(self) -> bool:
        """Whether functions can be told to the model, and its calls be read."""
        return bool(self._tokenizer.has_tool_calling) and (self.source is None or "tools" in self.source)

    @property
    def variables(self) -> tuple[str, ...]:
        """The names that the template looks up; none where it is no Jinja."""
        if self.source is None:
            return ()
        environment = Environment(extensions=[_Generation, loopcontrols])
        try:
            names = meta.find_undeclared_variables(environment.parse(self.source))
        except TemplateSyntaxError:
            return ()
        return tuple(sorted(names - _FUNCTIONS))

    def ids(self, messages: Messages, options: Options, *, answer: bool = True) -> list[int]:
        """With `answer`, up to where the model's begins. Raises TemplateError, one of UNFIT, or InvalidRequest."""
        args = {**self._args, **options.args}
        if taken := RESERVED.intersection(args):
            name = min(taken)
            raise InvalidRequest(f"{name!r} is not for a template to be given", param="chat_template_kwargs")
        messages = [_message(message, developer="developer" in (self.source or "")) for message in _named(messages)]
        try:
            return self._render([_parsed(message) for message in messages], options.tools, args, answer)
        except UNFIT:
            if not any(message.get("tool_calls") for message in messages):
                raise
        # Most templates want arguments as objects; some put their text together with other text.
        return self._render(messages, options.tools, args, answer)

    def tried(self, messages: Messages, options: Options, *, answer: bool = False) -> list[int] | None:
        """None where the template refuses."""
        try:
            return self.ids(messages, options, answer=answer)
        except (TemplateError, *UNFIT):
            return None

    def _render(self, messages: Messages, tools: Any, args: dict[str, Any], answer: bool) -> list[int]:
        if tools is not None:
            args = {**args, "tools": tools}
        if self._given is None:
            if len(repr((messages, args))) > _LARGE:
                whole = self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=answer, tokenize=False, **args
                )
                self._weigh(whole)
            return list(
                self._tokenizer.apply_chat_template(messages, add_generation_prompt=answer, tokenize=True, **args)
            )
        args = {"enable_thinking": self._tokenizer.has_thinking, **self._tokenizer.special_tokens_map, **args}
        (text,), _ = render_jinja_template([messages], chat_template=self._given, add_generation_prompt=answer, **args)
        self._weigh(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False))


class _Generation(Extension):
    """`{% generation %}`, by which templates for training mark what the model says."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _source(tokenizer: Any) -> str | None:
    """The Jinja of the model's own template. With several the one that is for tools tells what the model knows."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("tool_use", own.get("default"))
    return own if isinstance(own, str) else None


def _message(message: dict[str, Any], developer: bool) -> dict[str, Any]:
    """As templates take it: they print a None, or fail on it; all that ask for a content take an empty one for none."""
    changed = dict(message)
    if changed.get("content", "") is None:
        changed["content"] = ""
    if changed.get("role") == "developer" and not developer:
        changed["role"] = "system"
    return changed


def _named(messages: Messages) -> list[dict[str, Any]]:
    """The results of calls with the names of what was called, which some templates look for."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id", "")] = call.get("function", {}).get("name", "")
        name = names.get(message.get("tool_call_id", "")) if message.get("role") == "tool" else None
        named.append({"name": name, **message} if name else message)
    return named


def _parsed(message: dict[str, Any]) -> dict[str, Any]:
    """With the arguments of its calls as objects."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{**call, "function": _arguments(call["function"])} for call in calls]}


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    try:
        parsed = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return function
    return {**function, "arguments": parsed} if isinstance(parsed, dict) else function
