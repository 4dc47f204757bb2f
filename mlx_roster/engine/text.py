"""One sequence's text as it is generated: what its tokens say, parted into answer, reasoning and calls. No mlx."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from mlx_roster.core import CallDelta, Chat, Generation, Tools
from mlx_roster.engine.channels import Channels, Moves, Segment, markers, spelled, thinking, wrapped
from mlx_roster.engine.detokenizing import Detokenizer, detokenizers, pieces, specials
from mlx_roster.engine.stops import Stops
from mlx_roster.engine.toolforms import forced_form
from mlx_roster.engine.tools import Calls, Parsed, Reader, Undecided
from mlx_roster.engine.written import Written


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """What any token stands for: its own bytes, special ones by their names. Ids without a token have none."""
    return Spelled(tokenizer).__getitem__


class Spelled(dict[int, bytes]):
    """Token id → its bytes, filled as ids come up."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__({token: name.encode() for token, name in specials(tokenizer).items()})
        self._tokenizer = tokenizer
        self._pieces = pieces(tokenizer)

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._decoded(token) if self._pieces is None else self._pieces[token]
        return piece

    def _decoded(self, token: int) -> bytes:
        if not 0 <= token < len(self._tokenizer):
            return b""
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text.encode()


def prompt_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """A prompt that came as ids, in words: special tokens too."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


class Voice(Protocol):
    """One sequence's text as it is generated. For the engine's thread, but for being made."""

    #: Set once a stop string has been met, or nothing more is wanted. Nothing must be added after that.
    stopped: bool

    @property
    def reasoning(self) -> int:
        """How many tokens, markers included, were reasoning."""

    @property
    def called(self) -> bool:
        """Whether a complete call of a function has been said."""

    #: The answer's text that a token completes.
    add: Callable[[int], str]

    def finish(self, ended: bool = False) -> str:
        """All that is left, once the last token has been added; may still meet a stop string.

        `ended` if the model ended by itself: what it wrote of a call is then all there is of it, and not cut off.
        """

    def aside(self) -> tuple[str, list[CallDelta]] | None:
        """The reasoning and the calls since this was last asked; None if there is neither."""


class Answer:
    """The text of an answer, up to a stop string: not one that would begin in the first `free` tokens."""

    def __init__(self, stops: Sequence[str], free: int) -> None:
        self._stops = Stops(stops) if stops else None
        self._free = free
        self.stopped = False

    def add(self, text: str, tokens: int) -> str:
        """What may be shown once so many tokens have been generated."""
        if self._stops is None or not text or tokens <= self._free:
            return text
        text, self.stopped = self._stops.add(text)
        return text

    def pause(self) -> str:
        """What was held back, once other text follows than the answer's, or none."""
        return "" if self._stops is None or self.stopped else self._stops.finish()


class TextStream:
    """A Voice whose text is all answer."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._answer = Answer(stops, min_tokens)
        self._tokens = 0
        self.add: Callable[[int], str] = self._add if stops else detokenizer.add
        self.reasoning = 0
        self.called = False
        self.stopped = False

    def _add(self, token: int) -> str:
        self._tokens += 1
        return self._cut(self._detokenizer.add(token))

    def finish(self, ended: bool = False) -> str:
        text = self._cut(self._detokenizer.finish())
        return text + self._answer.pause()

    def aside(self) -> None:
        return None

    def _cut(self, text: str) -> str:
        text = self._answer.add(text, self._tokens)
        self.stopped = self._answer.stopped
        return text


class PartedStream:
    """A Voice for models that reason or call: `channels` part its text, and what they read of calls is in `calls`.

    `names` are of all special tokens, and `signals` of those that are part of a marker.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        names: Mapping[int, str],
        signals: Mapping[int, str],
        channels: Channels,
        calls: Calls,
        answer: Answer,
    ) -> None:
        self._detokenizer = detokenizer
        self._names = names
        self._signals = signals
        self._channels = channels
        self._calls = calls
        self._answer = answer
        self._thought: list[str] = []
        self._tokens = 0
        #: Tokens since the first that may belong to a marker.
        self._held = 0
        self.reasoning = 0
        self.stopped = False
        self.add: Callable[[int], str] = self._add

    @property
    def called(self) -> bool:
        return self._calls.called

    def _add(self, token: int) -> str:
        self._tokens += 1
        before, text = self._channels.state, self._spell(token)
        if self._channels.passes(text):
            return self._show([("normal", text)])
        shown = self._show(self._channels.add(text))
        if before == "reasoning":
            self.reasoning += 1
        elif self._channels.state == "reasoning":
            self.reasoning += self._held + 1
        self._held = self._held + 1 if self._channels.holding else 0
        return shown

    def finish(self, ended: bool = False) -> str:
        shown = self._show(self._channels.add(self._detokenizer.finish()))
        if not self.stopped:
            shown += self._show(self._channels.finish(ended))
        return shown if self.stopped else shown + self._answer.pause()

    def aside(self) -> tuple[str, list[CallDelta]] | None:
        thought, calls = "".join(self._thought), self._calls.take()
        self._thought.clear()
        return (thought, calls) if thought or calls else None

    def _spell(self, token: int) -> str:
        """A token's text. Of special ones only markers are seen, but within a call all of them are."""
        if token not in self._names:
            return self._detokenizer.add(token)
        if self._channels.state == "tool":
            return self._detokenizer.finish() + self._names[token]
        if token in self._signals:
            return self._detokenizer.finish() + self._signals[token]
        return self._detokenizer.add(token)

    def _show(self, segments: Iterable[Segment]) -> str:
        shown = ""
        for channel, text in segments:
            if self._calls.full:
                break
            if channel == "normal":
                shown += self._answer.add(text, self._tokens)
                if self._answer.stopped:
                    break
            else:
                shown += self._answer.pause()
                self._thought.append(text)
        self.stopped = self._answer.stopped or self._calls.full
        return shown


class Voices:
    """Makes the Voice of each new sequence of a model; `tokenizer` is one of mlx-lm's. For a preparing thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = detokenizers(tokenizer)
        self._names = specials(tokenizer)
        self._form = forced_form(tokenizer)
        parser = getattr(tokenizer.tool_parser, "__module__", "")
        self._written = parser.rpartition(".")[2] == "json_tools"
        names = self._names.values()
        self._moves = {calls: spelled(markers(tokenizer, calls=calls), names) for calls in (False, True)}
        self._signals = {calls: self._signalling(moves) for calls, moves in self._moves.items()}

    def __call__(self, generation: Generation, prompt_ids: Sequence[int]) -> Voice:
        """For one sequence. Only the answer to a chat is parted: a text completion is what the model wrote."""
        tools, free = generation.tools, generation.sampling.min_tokens
        forced = tools is not None and tools.choice != "auto"
        bare = forced and self._form == "array"
        calling = tools is not None and not bare
        moves = self._moves[calling]
        if not isinstance(generation.prompt, Chat) or (tools is None and not any(moves.values())):
            return TextStream(self._detokenizer(), generation.stop, free)
        state = self._tokenizer.response_initial_state
        if state is None:
            state = "reasoning" if thinking(self._tokenizer, prompt_ids) else "normal"
        calls = Calls(tools is None or tools.parallel, short=self._tokenizer.tool_call_start == "[TOOL_CALLS]")
        reader = None if tools is None else partial(self._reader, tools, calls)
        channels = Channels(moves, state, reader, bare, forced)
        answer = Answer(generation.stop, free)
        return PartedStream(self._detokenizer(), self._names, self._signals[calling], channels, calls, answer)

    def _signalling(self, moves: Moves) -> dict[int, str]:
        """The special tokens that markers are made of, and the end of a call that its reader may have given up."""
        spelled_out = "".join(marker for edges in moves.values() for marker in edges)
        signals = {token: wrapped(name) for token, name in self._names.items() if wrapped(name) in spelled_out}
        if self._written and any("tool" in edges.values() for edges in moves.values()):
            end = self._tokenizer.tool_call_end
            signals |= {token: name for token, name in self._names.items() if name == end}
        return signals

    def _reader(self, tools: Tools, calls: Calls, start: str, state: str) -> Reader:
        """What reads a call that `start` begins, in a state. Without a start it is a forced one."""
        end = self._tokenizer.tool_call_end
        ends = (end,) if start and end else ()
        written = Written(calls, start, ends)
        if not start or self._written:
            return written
        breaks = (self._tokenizer.think_end,) if state == "reasoning" else ()
        specs = list(tools.specs)
        parsed = Parsed(calls, lambda text: self._tokenizer.tool_parser(text, specs), start, ends, breaks)
        return parsed if ends else Undecided(written, parsed)
