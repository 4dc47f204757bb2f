"""Prompts to token ids: chat templates, tokenization, and every check that a prompt must pass. Never touches mlx."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from mlx_roster.core import Chat, Generation, Text, Tokens
from mlx_roster.errors import ContextLengthExceeded, InvalidRequest


class Prompts:
    """One model's way from a prompt to ids. For the engine's preparing thread: tokenizers are not safe to share."""

    def __init__(self, tokenizer: Any, vocabulary: int, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.has_chat_template)

    def encode(self, generation: Generation) -> tuple[list[int], int]:
        """The prompt's ids, all inside the vocabulary, and how many tokens may follow them.

        Raises InvalidRequest naming the field, or ContextLengthExceeded.
        """
        if generation.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        match generation.prompt:
            case Chat() as prompt:
                param, ids = "messages", self._chat(prompt)
            case Text() as prompt:
                param, ids = "prompt", self._text(prompt)
            case Tokens() as prompt:
                param, ids = "prompt", list(prompt.ids)
        if not ids:
            raise InvalidRequest("the prompt is empty", param=param)
        self._check_vocabulary(ids, param)
        return ids, self._room(len(ids), generation.max_tokens, param)

    def _chat(self, prompt: Chat) -> list[int]:
        if not self.chat:
            raise InvalidRequest("this model has no chat template; use a text completion", param="messages")
        if not prompt.messages:
            raise InvalidRequest("there are no messages", param="messages")
        # Templates print a None, or fail on it; all that ask for a content take an empty one for none.
        messages = [
            {**message, "content": ""} if message.get("content", "") is None else message for message in prompt.messages
        ]
        try:
            ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        except TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidRequest("the chat template cannot render these messages", param="messages") from error
        return list(ids)

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
