"""Log-probabilities in the three forms that clients know, of one choice's tokens all at once or piece after piece."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Any, Literal

from mlx_roster.core import Alternative, Aside, Scored

#: "content" is OpenAI's for chats, "ids" that of mlx-lm's first servers, "text" OpenAI's for text.
ScoreForm = Literal["content", "ids", "text"]

#: JSON has no number for what is impossible; this is OpenAI's.
_IMPOSSIBLE = -9999.0

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
    """Offsets go on from piece to piece. They are those of characters; one of several tokens begins where its first
    token does."""

    def __init__(self) -> None:
        self._offset = 0
        # What the text began with: a prompt's, whose tokens may come later than their text.
        self._begun, self._at = b"", 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __call__(self, text: str, aside: Aside) -> dict[str, Any]:
        offsets = [*self._of_prompt(text, aside.prompt), *map(self._advance, aside.scores)]
        scored = _all(aside)
        return {
            "tokens": [_spelled(one.text) for one in scored],
            "token_logprobs": [_number(one.logprob) for one in scored],
            "top_logprobs": [None if one.logprob is None else _likeliest(one) for one in scored],
            "text_offset": offsets,
        }

    def _of_prompt(self, text: str, scored: Iterable[Scored]) -> Iterable[int]:
        """The first `text` begins with the prompt's, which special tokens are no part of."""
        self._begun = self._begun or text.encode()
        for one in scored:
            if self._begun.startswith(one.text, self._at):
                self._at += len(one.text)
                yield self._advance(one)
            else:
                yield self._offset

    def _advance(self, one: Scored) -> int:
        begins = self._offset
        self._offset += len(self._decode(one.text))
        return begins


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
