"""A talk with a model, without its terminal: what has been said, what is asked for, and what its commands mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_roster.cli.terminal import whole

#: What begins and ends a message of several lines.
FENCE = '"""'

#: Each command of a talk, with what it takes.
COMMANDS = {
    "/model": ("NAME[:ADAPTER]", "talk to another model, about the same"),
    "/adapter": ("NAME|none", "the same model with another adapter, or none"),
    "/models": ("", "list what there is"),
    "/system": ("TEXT|none", "what the model is told before everything else"),
    "/set": ("FIELD VALUE|none", "a field of each request: temperature 0.2"),
    "/retry": ("", "ask the last question again"),
    "/clear": ("", "forget what was said"),
    "/save": ("FILE", "write the talk as the JSON of a request"),
    "/help": ("", "this"),
    "/exit": ("", "end the talk; so does Ctrl-D"),
}

#: Fields of a request that are the talk's own business, and what to say instead.
_OWN = {
    "model": "/model",
    "adapters": "/adapter",
    "messages": "/system, /clear and what you say",
    "stream": "nothing: answers are always streamed",
    "stream_options": "nothing: answers are always streamed",
    "n": "/retry",
}


class Misused(Exception):
    """A command that cannot be followed. The message says why."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as `/v1/models` lists it; `parent` is the base of an adapter."""

    id: str
    parent: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        return self.parent or self.id

    @property
    def adapter(self) -> str | None:
        return None if self.parent is None else self.id.removeprefix(f"{self.parent}:")


@dataclass(slots=True)
class Turn:
    question: str
    answer: str | None = None


@dataclass(slots=True)
class Conversation:
    """What is asked for and what has been said. `settings` are fields of each request.

    `name` is the model in the words of whoever asked for it, since an alias may have defaults of its own; with
    `adapter`, what it is served through instead. None: the server's default.
    """

    name: str | None = None
    adapter: str | None = None
    served: Listed | None = None
    system: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    #: The last question, where it got no answer.
    _unanswered: str | None = None

    def ask(self, question: str) -> dict[str, Any]:
        """The request for an answer to `question`. One of `answered` and `failed` must follow."""
        self.turns.append(Turn(question))
        return self.request()

    def answered(self, text: str) -> None:
        """The last question got `text` for an answer, perhaps not all of it."""
        if not text:
            self.failed()
        else:
            self.turns[-1].answer = text
            self._unanswered = None

    def failed(self) -> None:
        """The last question got no answer: it is as if it had never been asked, but that it can be retried."""
        self._unanswered = self.turns.pop().question

    def retried(self) -> str:
        """The last question, to be asked again: its answer is forgotten. Raises Misused."""
        if self._unanswered is not None:
            return self._unanswered
        if not self.turns:
            raise Misused("nothing has been asked yet")
        return self.turns.pop().question

    def clear(self) -> None:
        self.turns.clear()
        self._unanswered = None

    def request(self) -> dict[str, Any]:
        """A chat completion's fields, without those that say how it is sent."""
        messages = [] if self.system is None else [{"role": "system", "content": whole(self.system)}]
        for turn in self.turns:
            messages.append({"role": "user", "content": whole(turn.question)})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": whole(turn.answer)})
        named = {"model": self.name, "adapters": self.adapter}
        return {
            **{key: value for key, value in named.items() if value is not None},
            "messages": messages,
            **self.settings,
        }

    def through(self, name: str, served: Listed) -> None:
        """From now on with `name`, which is `served`."""
        self.name, self.adapter, self.served = name, None, served

    def adapted(self, adapter: str | None, served: Listed) -> None:
        """From now on with an adapter of the same base, or with none, which is `served`."""
        assert self.served is not None, "asked before anything was served"
        if self.name is None or (self.adapter is None and self.served.parent is not None):
            self.name = self.served.base
        self.adapter, self.served = adapter, served

    def set(self, words: str) -> str:
        """Follow `/set WORDS`: what to say about it. Raises Misused."""
        name, _, text = words.partition(" ")
        text = text.strip()
        if not name:
            return ", ".join(f"{key} {json.dumps(value)}" for key, value in self.settings.items()) or "nothing is set"
        if name in _OWN:
            raise Misused(f"{name} is not for /set: use {_OWN[name]}")
        if not text or text == "none":
            self.settings.pop(name, None)
            return f"{name} is the server's own choice"
        self.settings[name] = value_of(text)
        return f"{name} is {json.dumps(self.settings[name])}"


def value_of(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def command(line: str) -> tuple[str, str] | None:
    """The command in `line` and what comes after it; None for what is said to the model. Raises Misused.

    Two slashes at the start stand for one, of what is said.
    """
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return None
    name, _, rest = line.partition(" ")
    if name in ("/quit", "/bye"):
        name = "/exit"
    if name == "/?":
        name = "/help"
    if name not in COMMANDS:
        raise Misused(f"there is no {name}; /help lists what there is (// begins a message with a slash)")
    return name, rest.strip()


def said(message: str) -> str:
    """What the model is to get of a message."""
    return message[1:] if message.startswith("//") else message


class Gathering:
    """Lines that make one message: between two FENCEs, or as long as each ends with a backslash."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fenced = False

    @property
    def open(self) -> bool:
        """More lines are to come."""
        return self._fenced or bool(self._lines)

    def feed(self, line: str) -> str | None:
        """The message, once `line` ends it."""
        if self._fenced:
            body, fence, _ = line.partition(FENCE)
            self._lines.append(body)
            return self._done() if fence else None
        if not self._lines and line.lstrip().startswith(FENCE):
            body, fence, _ = line.lstrip().removeprefix(FENCE).partition(FENCE)
            self._lines.append(body)
            self._fenced = not fence
            return self._done() if fence else None
        if line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        self._lines.append(line)
        return self._done()

    def _done(self) -> str:
        text = "\n".join(self._lines).strip()
        self._lines, self._fenced = [], False
        return text


def completions(line: str, models: Sequence[Listed], served: Listed | None) -> list[str]:
    """What the last word of `line` could become."""
    words = line.split(" ")
    if len(words) == 1:
        options = [f"{name} " if takes else name for name, (takes, _) in COMMANDS.items()]
    elif len(words) == 2 and words[0] == "/model":
        options = [name for model in models for name in (model.id, *model.aliases)]
    elif len(words) == 2 and words[0] == "/adapter" and served is not None:
        adapters = [model.adapter for model in models if model.parent == served.base]
        options = [*(name for name in adapters if name is not None), "none"]
    else:
        options = []
    return [option for option in options if line.startswith("/") and option.startswith(words[-1])]
