"""Tokenizers with the markers of different models, and gates walked through token by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jsonschema
import numpy as np
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_roster.core import Chat, Format, Generation, Tools
from mlx_roster.engine.grammar import Grammars

CORPUS = ['{"name": "Ada", "tags": ["a", "b"], "age": 36}', '[{"x": 1.5}, null, true]\n  "é你好"', "hello, world"]
END, ENDING = "<|end|>", "<|ending|>"
X = {
    "name": "x",
    "parameters": {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}}},
}
TOOLS = (
    {"type": "function", "function": X},
    {"type": "function", "function": {"name": "y", "parameters": {"type": "object", "additionalProperties": False}}},
    {"type": "function", "function": {"name": "any"}},
)
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
PICK = Callable[[np.ndarray], int]


def tokenizer(*added: str, parser: str | None = None) -> Any:
    """mlx-lm's, over bytes and a few merges, with these tokens added and one of mlx-lm's parsers of calls."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END, ENDING], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.add_tokens([AddedToken(text, special=False) for text in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, clean_up_tokenization_spaces=False)
    module = import_module(f"mlx_lm.tool_parsers.{parser}") if parser else None
    return TokenizerWrapper(
        fast,
        BPEStreamingDetokenizer,
        eos_token_ids=[fast.convert_tokens_to_ids(ENDING)],
        tool_call_start=module and module.tool_call_start,
        tool_call_end=module and module.tool_call_end,
        tool_parser=module and module.parse_tool_call,
    )


def fits(text: str, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))


def generation(schema: str | None = None, **fields: Any) -> Generation:
    return Generation(Chat([]), 100, **({"format": Format(schema)} | fields))


def calling(tools: Tools) -> Generation:
    return Generation(Chat([]), 100, tools=tools)


class Walk:
    """One sequence under a gate, over `size` logits."""

    def __init__(self, grammars: Grammars, wanted: Generation, prompt: str = "hello", size: int = 320) -> None:
        self.tokenizer = grammars._tokenizer
        gate = grammars.gate(wanted, self.tokenizer.encode(prompt))
        assert gate is not None
        self.gate = gate
        self.size = size
        self.drawn: list[int] = []

    def allowed(self) -> np.ndarray:
        """Ids of the tokens that may be next."""
        words = np.zeros(-(-self.size // 32), dtype=np.int32)
        if not self.gate.mask(words):
            return np.arange(self.size)
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[: self.size])

    def names(self) -> set[str]:
        """What may be next, as the vocabulary has it."""
        return set(self.tokenizer.convert_ids_to_tokens(self.allowed().tolist()))

    def draw(self, token: int) -> None:
        assert token in self.allowed(), self.tokenizer.convert_ids_to_tokens(token)
        self.gate.advance(token)
        self.drawn.append(token)

    def say(self, text: str) -> None:
        """Draw the tokens of a text."""
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            self.draw(token)

    def takes(self, text: str) -> bool:
        """Whether a text is allowed here."""
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            if token not in self.allowed():
                return False
            self.gate.advance(token)
        return True

    def finish(self, pick: PICK, limit: int = 2000) -> str:
        """Draw what `pick` takes of the allowed, up to the end of the sequence."""
        while not self.drawn or self.drawn[-1] not in self.tokenizer.eos_token_ids:
            assert len(self.drawn) < limit, self.text
            self.draw(pick(self.allowed()))
        return self.text

    @property
    def text(self) -> str:
        said = [token for token in self.drawn if token not in self.tokenizer.eos_token_ids]
        return str(self.tokenizer.decode(said))


def at_random(tokenizer: Any, seed: int, tokens: int = 60) -> PICK:
    """Any allowed token with the same chance, so many times, and then what ends something if that is allowed."""
    random = np.random.default_rng(seed)
    ends = [*(tokenizer.think_end_tokens or ()), *sorted(tokenizer.eos_token_ids)]
    quote, *closing = tokenizer.convert_tokens_to_ids(['"', "}", "]", "0", "1"])
    drawn = iter(range(tokens))

    def pick(allowed: np.ndarray) -> int:
        if next(drawn, None) is None:
            # In a string, brackets are text.
            order = [quote, *closing] if len(allowed) > 100 else [*closing, quote]
            first = next((token for token in [*ends, *order] if token in allowed), None)
            if first is not None:
                return first
        return int(random.choice(allowed))

    return pick


def greedily(seed: int, size: int, favourites: Sequence[int] = ()) -> PICK:
    """The allowed token with the largest of random logits, `favourites` before all others."""
    logits = np.random.default_rng(seed).normal(size=size)
    logits[list(favourites)] += 100

    def pick(allowed: np.ndarray) -> int:
        return int(allowed[np.argmax(logits[allowed])])

    return pick
