"""Prompts to token ids: chat templates, tokenization, and every check that a prompt must pass. Never touches mlx."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from jinja2.exceptions import TemplateError

from mlx_roster.core import Chat, Generation, Text, Tokens
from mlx_roster.errors import ContextLengthExceeded, InvalidRequest

Ids = npt.NDArray[np.int32]

#: What a chat template may raise over messages it was not made for, besides its own TemplateError.
_UNFIT = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt's ids, twice: as mlx-lm takes them, and to be compared with others.

    `marks`, in rising order, are where another prompt may well part from this one: it shares all tokens before.
    """

    ids: list[int]
    tokens: Ids
    marks: tuple[int, ...] = ()

    @classmethod
    def of(cls, ids: list[int], marks: tuple[int, ...] = ()) -> Prompt:
        return cls(ids, np.array(ids, dtype=np.int32), marks)

    def __len__(self) -> int:
        return len(self.ids)


class Prompts:
    """One model's way from a prompt to ids. For the engine's preparing thread: tokenizers are not safe to share.

    With `marking`, chats are given marks: for models whose caches can be kept at chosen places only.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, context: int | None, *, marking: bool = False) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._marking = marking
        # What the template makes of system messages, which many chats share: None where it refuses.
        self._openings: LRUCache[str, list[int] | None] = LRUCache(maxsize=16)

    def limit(self, context: int | None, *, marking: bool) -> None:
        """Hold to these from the next prompt on. From any thread."""
        self._context, self._marking = context, marking

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.has_chat_template)

    def encode(self, generation: Generation) -> tuple[Prompt, int]:
        """The prompt, its ids all inside the vocabulary, and how many tokens may follow them.

        Raises InvalidRequest naming the field, or ContextLengthExceeded.
        """
        if generation.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        marks: tuple[int, ...] = ()
        match generation.prompt:
            case Chat() as prompt:
                messages = _filled(prompt.messages)
                param, ids = "messages", self._chat(messages)
                marks = self._marks(messages, ids) if self._marking else ()
            case Text() as prompt:
                param, ids = "prompt", self._text(prompt)
            case Tokens() as prompt:
                param, ids = "prompt", list(prompt.ids)
        if not ids:
            raise InvalidRequest("the prompt is empty", param=param)
        self._check_vocabulary(ids, param)
        return Prompt.of(ids, marks), self._room(len(ids), generation.max_tokens, param)

    def _chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        if not self.chat:
            raise InvalidRequest("this model has no chat template; use a text completion", param="messages")
        if not messages:
            raise InvalidRequest("there are no messages", param="messages")
        try:
            return self._rendered(messages)
        except TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except _UNFIT as error:
            raise InvalidRequest("the chat template cannot render these messages", param="messages") from error

    def _rendered(self, messages: Sequence[dict[str, Any]], *, answer: bool = True) -> list[int]:
        """With `answer`, up to where the model's begins."""
        return list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=answer, tokenize=True))

    def _marks(self, messages: Sequence[dict[str, Any]], ids: list[int]) -> tuple[int, ...]:
        """Behind the system prompt, and before what asks for an answer: the next turn may have other words there."""
        marks = {self._system(messages, ids)}
        ask = self._ask
        if ask and ids[-len(ask) :] == ask:
            marks.add(len(ids) - len(ask))
        return tuple(sorted(mark for mark in marks if 0 < mark < len(ids)))

    def _system(self, messages: Sequence[dict[str, Any]], ids: list[int]) -> int:
        """How much of `ids` another chat with the same system messages begins with."""
        leading = list(itertools.takewhile(lambda message: message.get("role") in ("system", "developer"), messages))
        # By repr: what a template may look at besides roles and contents is not known.
        name = repr(leading)
        if name not in self._openings:
            self._openings[name] = self._tried([*leading, {"role": "user", "content": ""}])
        opening = self._openings[name] or []
        pairs = zip(opening, ids, strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), 0)

    @cached_property
    def _ask(self) -> list[int]:
        """What the template adds for the model to answer."""
        messages = [{"role": "user", "content": ""}]
        whole, without = self._tried(messages, answer=True), self._tried(messages)
        if whole is None or without is None or whole[: len(without)] != without:
            return []
        return whole[len(without) :]

    def _tried(self, messages: Sequence[dict[str, Any]], *, answer: bool = False) -> list[int] | None:
        try:
            return self._rendered(messages, answer=answer)
        except (TemplateError, *_UNFIT):
            return None

    def _text(self, prompt: Text) -> list[int]:
        bos = self._tokenizer.bos_token
        doubled = bos is not None and prompt.text.startswith(bos)
        return list(self._tokenizer.encode(prompt.text, add_special_tokens=not doubled))

    def _check_vocabulary(self, ids: list[int], param: str) -> None:
        """An id outside the vocabulary would be read from outside the embedding: mlx does not check."""
        if min(ids) >= 0 and max(ids) < self._vocabulary:
            return
        wrong = next(token for token in ids if not 0 <= token < self._vocabulary)
        raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {self._vocabulary} tokens", param=param)

    def _room(self, length: int, max_tokens: int, param: str) -> int:
        if self._context is None:
            return max_tokens
        if length + 1 > self._context:
            raise ContextLengthExceeded(
                f"the prompt has {length} tokens, but this model's context is {self._context} tokens, answer included",
                param=param,
            )
        return min(max_tokens, self._context - length)


def _filled(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Templates print a None, or fail on it; all that ask for a content take an empty one for none."""
    return [{**message, "content": ""} if message.get("content", "") is None else message for message in messages]
