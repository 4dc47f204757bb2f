"""Prompts to token ids: chat templates, tokenization, and every check that a prompt must pass. Never touches mlx."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from jinja2.exceptions import TemplateError

from mlx_roster.core import Chat, Generation, Text, Tokens, Tools
from mlx_roster.engine import roles
from mlx_roster.engine.fewest import fewest
from mlx_roster.engine.templates import UNFIT, Messages, Options, Template
from mlx_roster.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter

Ids = npt.NDArray[np.int32]


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

    With `marking`, chats are given marks: for models whose caches can be kept at chosen places only. `chat_template` is
    Jinja instead of the model's own, and `template_args` are variables for it, under those of a request.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        context: int | None,
        *,
        marking: bool = False,
        chat_template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._marking = marking
        self._fewest = fewest(tokenizer)
        self._template = Template(
            tokenizer, chat_template, template_args or {}, weigh=lambda text: self._weigh(text, "messages")
        )
        # What the template makes of system messages, which many chats share: None where it refuses.
        self._openings: LRUCache[str, list[int] | None] = LRUCache(maxsize=16)
        # What it adds for the model to answer, by what else it looks at.
        self._asks: LRUCache[str, list[int]] = LRUCache(maxsize=16)

    def limit(self, context: int | None, *, marking: bool) -> None:
        """Hold to these from the next prompt on. From any thread."""
        self._context, self._marking = context, marking

    @property
    def chat(self) -> bool:
        """Whether there is a chat template. Chats can be had without, by `role_mapping`."""
        return self._template.exists

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that the chat template looks at."""
        return self._template.variables

    def encode(self, generation: Generation) -> tuple[Prompt, int]:
        """The prompt, its ids all inside the vocabulary, and how many tokens may follow them.

        Raises InvalidRequest naming the field, or ContextLengthExceeded.
        """
        if generation.max_tokens < (0 if generation.echo else 1):
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        if generation.sampling.logit_bias:
            self._check_vocabulary(generation.sampling.logit_bias, "logit_bias")
        marks: tuple[int, ...] = ()
        match generation.prompt:
            case Chat() as prompt:
                param, (ids, marks) = "messages", self._chat(prompt, generation.tools)
            case Text() as prompt:
                param, ids = "prompt", self._text(prompt.text, "prompt")
            case Tokens() as prompt:
                param, ids = "prompt", list(prompt.ids)
        if not ids:
            raise InvalidRequest("the prompt is empty", param=param)
        self._check_vocabulary(ids, param)
        return Prompt.of(ids, marks), self._room(len(ids), generation.max_tokens, param)

    def _chat(self, chat: Chat, tools: Tools | None) -> tuple[list[int], tuple[int, ...]]:
        """The ids and the marks."""
        if not chat.messages:
            raise InvalidRequest("there are no messages", param="messages")
        if tools is not None and not (self.chat and self._template.takes_tools):
            what = (
                "chat template has no tools"
                if self.chat
                else "prompts are written without a template, and so without tools"
            )
            raise UnsupportedParameter(f"this model's {what}", param="tools")
        if not self.chat:
            return self._written(chat), ()
        if chat.role_mapping:
            raise InvalidRequest(
                "this model has a chat template, which role_mapping would only be in place of", param="role_mapping"
            )
        options = Options(None if tools is None else _specs(tools), chat.template_args)
        try:
            ids = self._template.ids(chat.messages, options)
        except TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {str(error.message)[:400]}", param="messages"
            ) from error
        except UNFIT as error:
            raise InvalidRequest("the chat template cannot render these messages", param="messages") from error
        return ids, self._marks(chat.messages, options, ids) if self._marking else ()

    def _written(self, chat: Chat) -> list[int]:
        if chat.template_args:
            name = "reasoning_effort" if set(chat.template_args) == {"reasoning_effort"} else "chat_template_kwargs"
            raise InvalidRequest("this model has no chat template to be given variables", param=name)
        return self._text(roles.written(chat.messages, chat.role_mapping), "messages")

    def _marks(self, messages: Messages, options: Options, ids: list[int]) -> tuple[int, ...]:
        """Behind the system prompt, and before what asks for an answer: the next turn may have other words there."""
        marks = {self._system(messages, options, ids)}
        ask = self._ask(options)
        if ask and ids[-len(ask) :] == ask:
            marks.add(len(ids) - len(ask))
        return tuple(sorted(mark for mark in marks if 0 < mark < len(ids)))

    def _system(self, messages: Messages, options: Options, ids: list[int]) -> int:
        """How much of `ids` another chat with the same system messages begins with."""
        leading = list(itertools.takewhile(lambda message: message.get("role") in ("system", "developer"), messages))
        # By repr: what a template may look at besides roles and contents is not known.
        name = repr((leading, options))
        if name not in self._openings:
            self._openings[name] = self._template.tried([*leading, {"role": "user", "content": ""}], options)
        opening = self._openings[name] or []
        pairs = zip(opening, ids, strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), 0)

    def _ask(self, options: Options) -> list[int]:
        """What the template adds for the model to answer."""
        name = repr(options.args)
        if name not in self._asks:
            messages = [{"role": "user", "content": ""}]
            whole = self._template.tried(messages, options, answer=True)
            without = self._template.tried(messages, options)
            known = whole is not None and without is not None and whole[: len(without)] == without
            self._asks[name] = (whole or [])[len(without or []) :] if known else []
        return self._asks[name]

    def _text(self, text: str, param: str) -> list[int]:
        self._weigh(text, param)
        bos = self._tokenizer.bos_token
        doubled = bos is not None and text.startswith(bos)
        return list(self._tokenizer.encode(text, add_special_tokens=not doubled))

    def _check_vocabulary(self, ids: Collection[int], param: str) -> None:
        """An id outside the vocabulary would be read from outside the embedding: mlx does not check."""
        if min(ids) >= 0 and max(ids) < self._vocabulary:
            return
        wrong = next(token for token in ids if not 0 <= token < self._vocabulary)
        raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {self._vocabulary} tokens", param=param)

    def _weigh(self, text: str, param: str) -> None:
        """Refuse what cannot fit, before it is tokenized: that may take half a minute, in which all others wait."""
        least = self._fewest(text)
        if self._context is not None and least > self._context:
            raise self._too_long(f"at least {least}", param)

    def _room(self, length: int, max_tokens: int, param: str) -> int:
        if self._context is None:
            return max_tokens
        if length + min(max_tokens, 1) > self._context:
            raise self._too_long(str(length), param)
        return min(max_tokens, self._context - length)

    def _too_long(self, count: str, param: str) -> ContextLengthExceeded:
        # The first words are OpenAI's own: clients know the error by them.
        return ContextLengthExceeded(
            f"this model's maximum context length is {self._context} tokens, answer included, "
            f"but the prompt has {count} tokens",
            param=param,
        )


def _specs(tools: Tools) -> list[dict[str, Any]]:
    """What the model is told of: where a function is named, of no other."""
    if tools.choice != "named":
        return list(tools.specs)
    return [spec for spec in tools.specs if spec.get("function", {}).get("name") == tools.name]
