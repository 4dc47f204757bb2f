"""A talk in a terminal: lines in, answers out while they are written, and commands between them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from mlx_roster.cli.asking import Facts, Piece, Server, Waiting
from mlx_roster.cli.conversation import (
    COMMANDS,
    Conversation,
    Gathering,
    Listed,
    Misused,
    command,
    completions,
    said,
)
from mlx_roster.cli.remote import Refused, Unreachable
from mlx_roster.cli.terminal import Screen, clean

readline: ModuleType | None
try:
    import readline  # input() edits lines and remembers them from here on
except ImportError:  # some builds of Python have none
    readline = None


#: An answer that takes less, in seconds, came in too few pieces to tell how fast it was.
LONG_ENOUGH = 0.25


class Talk:
    """A Conversation with whoever sits at the terminal that `screen` writes to."""

    def __init__(self, server: Server, conversation: Conversation, screen: Screen) -> None:
        self._server = server
        self._conversation = conversation
        self._screen = screen
        self._models: list[Listed] = []
        self._verbs: dict[str, Callable[[str], None]] = {
            "/model": self._model,
            "/adapter": self._adapter,
            "/models": self._list,
            "/system": self._system,
            "/set": self._set,
            "/retry": self._retry,
            "/clear": self._clear,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        """Until /exit or the end of the input. Raises Refused or Unreachable where it cannot begin."""
        self._models = self._server.models()
        bases = [model for model in self._models if model.parent is None]
        if self._conversation.name is not None:
            self._conversation.through(self._conversation.name, self._server.model(self._conversation.name))
        elif len(bases) == 1:
            self._conversation.through(bases[0].id, bases[0])
        self._screen.line("/help lists the commands, Ctrl-D ends", "dim")
        if not self._models:
            self._note("the server has no models: mlx-roster pull REPO fetches one")
        with _completing(lambda line: completions(line, self._models, self._conversation.served)):
            for message in self._messages():
                if not self._heed(message):
                    return

    def _messages(self) -> Iterator[str]:
        gathering = Gathering()
        while True:
            try:
                whole = gathering.feed(input("... " if gathering.open else self._prompt()))
            except EOFError:
                self._screen.write("\n")
                return
            except KeyboardInterrupt:
                gathering = Gathering()
                self._screen.write("\n")
                self._note("Ctrl-D ends the talk")
                continue
            if whole:
                yield whole

    def _prompt(self) -> str:
        served = self._conversation.served
        return f"{clean(served.id) if served else ''}> "

    def _heed(self, message: str) -> bool:
        """Whether the talk goes on."""
        try:
            found = command(message)
            if found is None:
                self._answer(said(message))
            elif found[0] == "/exit":
                return False
            else:
                self._verbs[found[0]](found[1])
        except (Misused, Refused, Unreachable) as error:
            self._screen.line(str(error), "red")
        except KeyboardInterrupt:  # while a command waited for the server
            self._screen.line()
        return True

    def _answer(self, question: str) -> None:
        """Ask, and show the answer while it comes. Ctrl-C ends it, here and on the server."""
        conversation, facts, text = self._conversation, Facts(), ""
        watch = _Watch()
        try:
            with closing(self._server.pieces(conversation.ask(question), facts)) as pieces, self._waiting() as status:
                for piece in pieces:
                    if isinstance(piece, Waiting):
                        status.update(_dim(piece.words))
                        continue
                    status.stop()
                    watch.said()
                    self._show(piece)
                    text += "" if piece.reasoning else piece.text
        except KeyboardInterrupt:
            facts.finish = "interrupted"
        except (Refused, Unreachable) as error:
            self._screen.line(str(error), "red")
            facts.finish = "failed"
        # What has been said has been said, also where it broke off.
        conversation.answered(text)
        self._screen.write("" if self._screen.at_line_start else "\n")
        self._close(facts, watch)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[Status]:
        with Status(_dim("waiting"), console=Console(), spinner_style="dim") as status:
            yield status

    def _show(self, piece: Piece) -> None:
        if not piece.reasoning and self._reasoning and not self._screen.at_line_start:
            self._screen.write("\n")
        self._reasoning = piece.reasoning
        self._screen.write(piece.text, "dim" if piece.reasoning else "")

    _reasoning = False

    def _close(self, facts: Facts, watch: _Watch) -> None:
        """What there is to say of an answer that has ended."""
        self._reasoning = False
        if facts.ignored:
            self._note(f"not heeded by the server: {facts.ignored}")
        if facts.finish == "length":
            self._note("cut off at max_tokens: /set max_tokens 2000 allows more, /retry asks again")
        elif facts.finish == "interrupted":
            self._note("stopped")
        if line := watch.summary(facts):
            self._note(line)
        self._screen.line()
        if self._conversation.served is None and facts.model is not None:
            with contextlib.suppress(Refused, Unreachable):
                self._conversation.served = self._server.model(facts.model)

    def _model(self, name: str) -> None:
        if not name:
            raise Misused("which? /models lists them")
        self._conversation.through(name, self._server.model(name))

    def _adapter(self, name: str) -> None:
        served = self._conversation.served
        if served is None:
            raise Misused("of which model? name one first: /model NAME")
        if not name:
            adapters = [model.adapter for model in self._server.models() if model.parent == served.base]
            raise Misused(f"which? {served.base} has {', '.join(filter(None, adapters)) or 'no adapters'}")
        adapter = None if name == "none" else name
        self._conversation.adapted(
            adapter, self._server.model(served.base if adapter is None else f"{served.base}:{adapter}")
        )

    def _list(self, _: str) -> None:
        self._models = self._server.models()
        for model in self._models:
            also = f"  also {', '.join(model.aliases)}" if model.aliases else ""
            current = self._conversation.served is not None and model.id == self._conversation.served.id
            self._screen.write(f"{'*' if current else ' '} {model.id}")
            self._screen.write(f"{also}\n", "dim")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "none" else text
        self._note(f"system: {self._conversation.system or 'none'}")

    def _set(self, words: str) -> None:
        self._note(self._conversation.set(words))

    def _retry(self, _: str) -> None:
        question = self._conversation.retried()
        self._note(question)
        self._answer(question)

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._note("forgotten")

    def _save(self, name: str) -> None:
        if not name:
            raise Misused("where to? /save talk.json")
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._conversation.request(), file, indent=2)
        except OSError as error:
            raise Misused(f"{name}: {error.strerror}") from error
        self._note(f"written to {path}")

    def _help(self, _: str) -> None:
        width = max(len(f"{name} {takes}") for name, (takes, _) in COMMANDS.items())
        for name, (takes, what) in COMMANDS.items():
            self._screen.write(f"{f'{name} {takes}':{width}}  ")
            self._screen.write(f"{what}\n", "dim")
        self._note('several lines: between two """, or with a \\ at the end of each but the last')

    def _note(self, text: str) -> None:
        self._screen.line(text, "dim")


class _Watch:
    """When an answer was asked for, and when its first and last words came."""

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._first: float | None = None
        self._last = 0.0

    def said(self) -> None:
        self._last = time.monotonic()
        self._first = self._first or self._last

    def summary(self, facts: Facts) -> str:
        """How much, how fast and after how long. Empty where nothing came."""
        if self._first is None:
            return ""
        parts = []
        tokens, took = facts.usage.get("completion_tokens"), self._last - self._first
        if isinstance(tokens, int):
            parts.append("1 token" if tokens == 1 else f"{tokens} tokens")
            if tokens > 1 and took > LONG_ENOUGH:
                # The first took none of the time that is counted here.
                parts.append(f"{(tokens - 1) / took:.1f} tokens/s")
        wait = f"first after {self._first - self._asked:.2f} s"
        parts.append(wait + (f", {facts.load_ms / 1000:.2f} of them to load" if facts.load_ms >= 10 else ""))
        return " · ".join(parts)


@contextlib.contextmanager
def _completing(complete: Callable[[str], list[str]]) -> Iterator[None]:
    """As long as the block runs, Tab offers what `complete` says could follow a line."""
    if readline is None:
        yield
        return
    lines = readline

    def offer(_: str, index: int) -> str | None:
        options = complete(lines.get_line_buffer())
        return options[index] if index < len(options) else None

    lines.set_completer(offer)
    lines.set_completer_delims(" ")
    lines.parse_and_bind("bind ^I rl_complete" if "libedit" in (lines.__doc__ or "") else "tab: complete")
    try:
        yield
    finally:
        lines.set_completer(None)


def _dim(words: str) -> Text:
    return Text(clean(words), "dim")
