"""OpenAI's response shapes: whole answers as dicts, stream chunks as bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from mlx_roster import __version__
from mlx_roster.core import FinishReason, Usage
from mlx_roster.server.sse import event

#: The same for all that one version of this server says.
FINGERPRINT = f"fp_mlxroster_{__version__}"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Form:
    """What tells one route's responses from the other's.

    In a chunk, a choice's text stands between `before` and `after`; `opening`, where there is one, is what the first
    chunk of each choice has instead.
    """

    id_prefix: str
    whole_object: str
    chunk_object: str
    whole: Callable[[str], dict[str, Any]]
    before: bytes
    after: bytes
    opening: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One sequence, collected."""

    text: str
    finish: FinishReason
    usage: Usage


class Envelope:
    """One response's id, time and model, around whatever it says."""

    def __init__(self, form: Form, model: str) -> None:
        self._form = form
        self._id = f"{form.id_prefix}{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, answers: Sequence[Answered]) -> bytes:
        """The answer to a request that did not ask for a stream."""
        choices = [
            {"index": index, **self._form.whole(answer.text), "logprobs": None, "finish_reason": answer.finish}
            for index, answer in enumerate(answers)
        ]
        usage = usage_of(answer.usage for answer in answers)
        return _encode({**self._head(self._form.whole_object), "choices": choices, "usage": usage})

    def chunks(self, index: int, *, usage_follows: bool) -> Chunks:
        """The chunks of one choice."""
        return Chunks(self._form, self._open_chunk(), index, usage_follows=usage_follows)

    def usage_chunk(self, usages: Iterable[Usage]) -> bytes:
        """The chunk after the last choice's last: no choices, all the tokens."""
        return event(self._open_chunk() + b'],"usage":' + _encode(usage_of(usages)) + b"}")

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    def _open_chunk(self) -> bytes:
        return _encode(self._head(self._form.chunk_object)).removesuffix(b"}") + b',"choices":['


class Chunks:
    """Makes one choice's chunks. All but the text is encoded beforehand: this runs for every token of every stream."""

    def __init__(self, form: Form, open_chunk: bytes, index: int, *, usage_follows: bool) -> None:
        head = b'data: %b{"index":%d,' % (open_chunk, index)
        # OpenAI announces the usage that will follow by a null in every chunk before it.
        end = b'],"usage":null}\n\n' if usage_follows else b"]}\n\n"
        finishes: tuple[FinishReason | None, ...] = (None, *get_args(FinishReason))
        self._head = head + form.before
        self._tails = {
            finish: b'%b,"logprobs":null,"finish_reason":%b}%b' % (form.after, _encode(finish), end)
            for finish in finishes
        }
        #: To be written before the first chunk. May be empty.
        self.opening = b""
        if form.opening is not None:
            self.opening = b'%b%b,"logprobs":null,"finish_reason":null}%b' % (head, form.opening, end)

    def chunk(self, text: str, finish: FinishReason | None) -> bytes:
        """One event, ready for the wire."""
        return self._head + _encode(text) + self._tails[finish]


def usage_of(usages: Iterable[Usage]) -> dict[str, Any]:
    """OpenAI's `usage`, summed over the sequences of one response."""
    counted = list(usages)
    prompt = sum(usage.prompt for usage in counted)
    completion = sum(usage.completion for usage in counted)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached for usage in counted)},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
