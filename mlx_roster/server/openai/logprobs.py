"""Log-probabilities in the three forms that clients know, of one choice's tokens all at once or piece after piece."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, Literal

from mlx_roster.core import Alternative, Aside, Scored

#: "content" is OpenAI's for chats, "ids" that of mlx-lm's first servers, "text" OpenAI's for text.
ScoreForm = Literal["content", "ids", "text"]

#: JSON has no number for what is impossible; this is OpenAI's.
_IMPOSSIBLE = -9999.0

#: How far to look for a prompt's token: characters for each byte that was not found before it, and in all.
_REACH, _FURTHEST = 3, 1024

#: Takes the text that came with an Aside, and the Aside.
Say = Callable[[str, Aside], dict[str, Any]]


def speaker(form: ScoreForm) -> Say:
    """What says the scores of one choice, piece after piece."""
    match form:
        case "content":
            return _content
        case "ids":
            return _ids
        case "text":
            return _Texts()


def _content(text: str, aside: Aside) -> dict[str, Any]:
    return {"content": [{**_token(one), "top_logprobs": list(map(_token, one.top))} for one in _all(aside)]}


def _token(one: Scored | Alternative) -> dict[str, Any]:
    shown = one.text.decode(errors="replace")
    return {"token": shown, "logprob": _number(one.logprob), "bytes": list(one.text)}


def _ids(text: str, aside: Aside) -> dict[str, Any]:
    scored = _all(aside)
    return {
        "token_logprobs": [_number(one.logprob) for one in scored],
        "tokens": [one.id for one in scored],
        "top_logprobs": [
            [
                {"id": other.id, "token": other.text.decode(errors="replace"), "logprob": _number(other.logprob)}
                for other in one.top
            ]
            for one in scored
        ],
    }


class _Texts:
    """Offsets go on from piece to piece. They are those of characters: a token begins where the one does that its first
    byte is part of. Bytes that make no character are U+FFFD, as in the text."""

    def __init__(self) -> None:
        self._characters = _Characters()
        self._prompt: _Prompt | None = None

    def __call__(self, text: str, aside: Aside) -> dict[str, Any]:
        if self._prompt is None:
            self._prompt = _Prompt(text)
        offsets = [self._prompt.place(one.text) for one in aside.prompt]
        if aside.scores and not self._characters.begun:
            # A prompt's last character may be half of one: the answer does not complete it.
            self._characters.begin(self._prompt.end())
        offsets += [self._characters.place(one.text) for one in aside.scores]
        scored = _all(aside)
        return {
            "tokens": [_spelled(one.text) for one in scored],
            "token_logprobs": [_number(one.logprob) for one in scored],
            "top_logprobs": [None if one.logprob is None else _likeliest(one) for one in scored],
            "text_offset": offsets,
        }


class _Characters:
    """Where in an answer, as Python decodes it piece by piece, each token begins."""

    def __init__(self) -> None:
        self._at = 0
        self._half = b""
        self.begun = False

    def begin(self, at: int) -> None:
        """Count from here."""
        self._at, self.begun = at, True

    def place(self, raw: bytes) -> int:
        """Where the next token begins."""
        begins = self._at + _begun(self._half, raw)
        said, self._half = _decoded(self._half + raw)
        self._at += len(said)
        return begins


class _Prompt:
    """Where a prompt's tokens begin in the `text` that begins with it. They may come later than it.

    The text need not have every token, such as special ones, nor have them as they are, such as a first one with a
    blank before it: what is not found takes no room, and what follows is looked for a little further on.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._half = b""
        #: Bytes of tokens, since one was last found, that were not.
        self._lost = 0

    def place(self, raw: bytes) -> int:
        """Where the next token begins."""
        said, half = _decoded(self._half + raw)
        if not self._text.startswith(said, self._at):
            return self._sought(raw)
        begins = self._at + _begun(self._half, raw)
        self._at, self._half = self._at + len(said), half
        self._lost = 0 if said else self._lost
        return begins

    def end(self) -> int:
        """Where the prompt ends, all of whose tokens have been placed."""
        rest = "\ufffd" if self._half else ""
        return self._at + len(rest) if self._text.startswith(rest, self._at) else self._at

    def _sought(self, raw: bytes) -> int:
        """The place of a token that is not where it ought to be."""
        self._lost += len(self._half)
        reach = self._at + min(_REACH * self._lost, _FURTHEST)
        for before in (self._half, b""):
            said, half = _decoded(before + raw)
            place = self._text.find(said, self._at, reach + len(said)) if self._lost and said else -1
            if place >= 0:
                self._at, self._half, self._lost = place + len(said), half, 0
                return place + _begun(before, raw)
        self._lost += len(raw)
        self._half = b""
        return self._at


def _begun(before: bytes, raw: bytes) -> int:
    """How many characters, of half a one and a token, come before the one that the token's first byte is part of."""
    said, waiting = _decoded(before + raw[:1])
    # That byte ended a character, or is part of one that is not complete.
    return len(said) - (1 if raw and not waiting else 0)


def _decoded(raw: bytes) -> tuple[str, bytes]:
    """The characters, and the bytes at the end that more may make one of."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(raw), decoder.getstate()[0]


def _likeliest(one: Scored) -> dict[str, float | None]:
    """By their strings, the token itself among them. Several tokens may be the same string: the likeliest of them."""
    found: dict[str, float | None] = {}
    known: list[Scored | Alternative] = [*one.top, one]
    for other in known:
        found.setdefault(_spelled(other.text), _number(other.logprob))
    return found


def _spelled(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _IMPOSSIBLE)


def _all(aside: Aside) -> list[Scored]:
    return [*aside.prompt, *aside.scores]
