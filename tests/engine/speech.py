"""What a Voice makes of a text, however it is cut into tokens."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mlx_roster.core import CallDelta, Chat, Generation, Sampling, Tools
from mlx_roster.engine.detokenizing import _BYTE_OF
from mlx_roster.engine.text import Voice, Voices

THINK = ("<think>", "</think>")
CALL = ("<tool_call>", "</tool_call>")

_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


def spec(name: str, **properties: str) -> dict[str, Any]:
    """A function that has parameters of these types."""
    described = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": described}}}


TOOLS = Tools((spec("weather", city="string", days="integer"), spec("now")))


@dataclass
class Said:
    """All of it. `calls` are names and arguments, and `ids` go with them."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def take(self, text: str, aside: tuple[str, list[CallDelta]] | None) -> None:
        self.content += text
        reasoning, deltas = aside or ("", [])
        self.reasoning += reasoning
        for delta in deltas:
            if delta.id is not None:
                assert delta.name is not None
                assert delta.index == len(self.calls)
                self.calls.append((delta.name, ""))
                self.ids.append(delta.id)
            name, arguments = self.calls[delta.index]
            self.calls[delta.index] = (name, arguments + delta.arguments)

    def key(self) -> tuple[Any, ...]:
        return self.content, self.reasoning, self.calls


class Speech:
    """A text of a made-up model, as ids. `names` are tokens of their own, left out of decoded text with `special`.

    Without, they are cut like all else. `cuts` are between bytes.
    """

    def __init__(
        self, text: str, names: Iterable[str] = (), *, special: bool = False, cuts: Sequence[int] = (), **parser: Any
    ) -> None:
        names = list(dict.fromkeys(names))
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if special and names else [text]
        pieces: list[str] = []
        at = 0
        for part in parts:
            raw = part.encode()
            if special and part in names:
                pieces.append(part)
            else:
                inside = sorted({0, len(raw), *(cut - at for cut in cuts if 0 < cut - at < len(raw))})
                pairs = itertools.pairwise(inside)
                pieces += ["".join(_CHARACTER_OF[byte] for byte in raw[begin:end]) for begin, end in pairs]
            at += len(raw)
        words = dict.fromkeys([*pieces, *_CHARACTER_OF.values()])
        backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
        backend.decoder = decoders.ByteLevel()
        backend.add_tokens([AddedToken(name, special=special) for name in names])
        self.ids = [backend.token_to_id(piece) for piece in pieces]
        self.tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend), **parser)

    def voice(
        self,
        tools: Tools | None = None,
        stop: tuple[str, ...] = (),
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> Voice:
        sampling = Sampling(min_tokens=min_tokens)
        generation = Generation(Chat([]), 1000, sampling=sampling, stop=stop, tools=tools)
        return Voices(self.tokenizer)(generation, prompt)

    def said(self, voice: Voice, ended: bool = True) -> Said:
        """What the voice says of it, to the end of the sequence."""
        said = Said()
        for token in self.ids:
            said.take(voice.add(token), voice.aside())
            if voice.stopped:
                return said
        said.take(voice.finish(ended), voice.aside())
        return said

    def id_of(self, name: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(name)
        assert isinstance(token, int)
        return token


def parser(name: str) -> dict[str, Any]:
    """What a TokenizerWrapper wants for one of mlx-lm's tool parsers."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    marks = {"tool_call_start": module.tool_call_start, "tool_call_end": module.tool_call_end}
    return {"tool_parser": module.parse_tool_call, **marks}


JSON = parser("json_tools")
