"""OpenAI's response shapes: whole answers as dicts, stream chunks as bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from mlx_roster import __version__
from mlx_roster.core import Aside, Delta, FinishReason, Usage
from mlx_roster.server.openai.logprobs import ScoreForm, speaker
from mlx_roster.server.openai.saying import NOTHING, Answered
from mlx_roster.server.sse import event

#: The same for all that one version of this server says.
FINGERPRINT = f"fp_mlxroster_{__version__}"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Form:
    """What tells one route's responses from the other's.

    `whole` makes the fields of a choice of a sequence that was collected, `piece` those of a choice in a chunk. In one
    that is text and nothing else, the text stands between `before` and `after`; `opening`, where there is one, is what
    the first chunk of each choice has instead.
    """

    #: What OpenTelemetry calls it.
    operation: str
    id_prefix: str
    whole_object: str
    chunk_object: str
    whole: Callable[[Answered], dict[str, Any]]
    piece: Callable[[str, Aside], dict[str, Any]]
    before: bytes
    after: bytes
    opening: bytes | None = None


class Envelope:
    """One response's id, time and model, around whatever it says. `n` choices are made of each prompt."""

    def __init__(self, form: Form, model: str, n: int = 1, scores: ScoreForm | None = None) -> None:
        self._form = form
        self._id = f"{form.id_prefix}{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._n = n
        self._scores = scores

    def whole(self, answers: Sequence[Answered]) -> bytes:
        """The answer to a request that did not ask for a stream."""
        choices = [
            {
                "index": index,
                **self._form.whole(answer),
                "logprobs": None if self._scores is None else speaker(self._scores)(answer.text, answer.aside),
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_of([answer.usage for answer in answers], self._n)
        return _encode({**self._head(self._form.whole_object), "choices": choices, "usage": usage})

    def chunks(self, index: int, *, usage_follows: bool) -> Chunks:
        """The chunks of one choice."""
        return Chunks(self._form, self._open_chunk(), index, usage_follows=usage_follows, scores=self._scores)

    def usage_chunk(self, usages: Sequence[Usage]) -> bytes:
        """The chunk after the last choice's last: no choices, all the tokens."""
        return event(self._open_chunk() + b'],"usage":' + _encode(usage_of(usages, self._n)) + b"}")

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

    def __init__(
        self, form: Form, open_chunk: bytes, index: int, *, usage_follows: bool, scores: ScoreForm | None = None
    ) -> None:
        head = b'data: %b{"index":%d,' % (open_chunk, index)
        # OpenAI announces the usage that will follow by a null in every chunk before it.
        end = b'],"usage":null}\n\n' if usage_follows else b"]}\n\n"
        finishes: tuple[FinishReason | None, ...] = (None, *get_args(FinishReason))
        self._choice = head
        self._ends = {finish: b',"finish_reason":%b}%b' % (_encode(finish), end) for finish in finishes}
        self._head = head + form.before
        self._tails = {finish: form.after + b',"logprobs":null' + rest for finish, rest in self._ends.items()}
        self._piece = form.piece
        self._say = None if scores is None else speaker(scores)
        #: To be written before the first chunk. May be empty.
        self.opening = b""
        if form.opening is not None:
            self.opening = b'%b%b,"logprobs":null,"finish_reason":null}%b' % (head, form.opening, end)

    def chunk(self, delta: Delta) -> bytes:
        """One event, or with calls several, ready for the wire."""
        # The end of a tool call is no content, not even an empty one.
        if delta.aside is None and (delta.text or delta.finish != "tool_calls"):
            return self._head + _encode(delta.text) + self._tails[delta.finish]
        aside = delta.aside or NOTHING
        if not aside.calls:
            return self._rich(delta.text, delta.finish, aside)
        # OpenAI's own client takes each call from a chunk of its own, and their end from one that has none.
        rest = msgspec.structs.replace(aside, calls=[])
        events = [self._rich(delta.text, None, rest)] if delta.text or rest != NOTHING else []
        events += [self._rich("", None, Aside(calls=[call])) for call in aside.calls]
        return b"".join(events if delta.finish is None else [*events, self._rich("", delta.finish, NOTHING)])

    def _rich(self, text: str, finish: FinishReason | None, aside: Aside) -> bytes:
        said = _encode(self._piece(text, aside))[1:-1]
        scored = self._say is not None and (aside.scores or aside.prompt)
        logprobs = self._say(text, aside) if self._say is not None and scored else None
        return self._choice + said + b',"logprobs":' + _encode(logprobs) + self._ends[finish]


def usage_of(usages: Sequence[Usage], n: int = 1) -> dict[str, Any]:
    """OpenAI's `usage`, of all sequences of one response. Each `n` in turn are of one prompt, which counts once."""
    prompts = usages[::n]
    prompt = sum(usage.prompt for usage in prompts)
    completion = sum(usage.completion for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached for usage in prompts)},
        "completion_tokens_details": _details(usages),
    }


def _details(usages: Sequence[Usage]) -> dict[str, int]:
    details = {"reasoning_tokens": sum(usage.reasoning for usage in usages)}
    accepted, rejected = sum(usage.accepted for usage in usages), sum(usage.rejected for usage in usages)
    if accepted or rejected:
        # OpenAI's names, for predictions that a client sends: here a draft model makes them.
        details |= {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
    return details
