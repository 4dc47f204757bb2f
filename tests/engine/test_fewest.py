"""A number of tokens that a text surely comes to, known without tokenizing it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_roster.core import Chat, Generation, Text
from mlx_roster.engine.fewest import fewest
from mlx_roster.engine.prompts import Prompts
from mlx_roster.errors import ContextLengthExceeded
from tests.engine import tiny

ASSETS = Path(__file__).parents[1] / "assets"
# In an order of its own each time.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def wrapped(backend: Tokenizer, kind: type = PreTrainedTokenizerFast) -> TokenizerWrapper:
    return TokenizerWrapper(kind(tokenizer_object=backend, eos_token="</s>"))


def bytewise(alphabet: list[str] = ALPHABET) -> Tokenizer:
    words = {word: index for index, word in enumerate([*alphabet, "ĠĠ", "ĠĠĠĠ"])}
    backend = Tokenizer(models.BPE(words, [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def composing() -> Tokenizer:
    backend = bytewise()
    backend.normalizer = normalizers.NFC()
    return backend


def falling_back(*, whole: bool = True) -> Tokenizer:
    words = ["▁", "▁▁", "a", "▁a", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256 if whole else 255))]
    merges = [("▁", "▁"), ("▁", "a")]
    backend = Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def changed(change: Callable[[Tokenizer], Any]) -> Tokenizer:
    backend = bytewise()
    change(backend)
    return backend


KNOWN = {
    "byte level": lambda: wrapped(bytewise()),
    "composing": lambda: wrapped(composing()),
    "byte fallback": lambda: wrapped(falling_back()),
    "a model's": lambda: TokenizerWrapper(AutoTokenizer.from_pretrained(ASSETS / "caller")),
}


@cache
def known(name: str) -> TokenizerWrapper:
    return KNOWN[name]()


#: Parts that come to few tokens: runs, what composes, names of special tokens.
PARTS = [" ", "    ", "a", "\u1100\u1161\u11a8", "\u1fbe\u0308\u0301", "\u212a", "<|im_start|>", "🎉", "\n"]


@pytest.mark.parametrize("name", KNOWN)
@settings(deadline=None)
@given(text=st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join), times=st.integers(1, 50))
def test_no_text_comes_to_less(name: str, text: str, times: int) -> None:
    tokenizer = known(name)
    for said in (text * times, unicodedata.normalize("NFD", text) * times):
        assert fewest(tokenizer)(said) <= len(tokenizer.encode(said, add_special_tokens=False))


def test_what_is_known() -> None:
    assert fewest(wrapped(bytewise()))("a" * 4001) == 1001
    assert fewest(wrapped(composing()))("a" * 4001) == 251
    assert fewest(wrapped(falling_back()))("é" * 3000) == 1000


class Shortening(PreTrainedTokenizerFast):
    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._encode_plus(text[:1], *args, **kwargs)


UNKNOWN = {
    "no byte of its own": lambda: wrapped(bytewise(ALPHABET[:-1])),
    "no fallback for one": lambda: wrapped(falling_back(whole=False)),
    "words": lambda: wrapped(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))),
    "a class that does as it likes": lambda: wrapped(bytewise(), Shortening),
    "blanks are swallowed": lambda: wrapped(
        changed(lambda backend: backend.add_tokens([AddedToken("<x>", lstrip=True)]))
    ),
    "blanks are left out": lambda: wrapped(
        changed(lambda backend: setattr(backend, "normalizer", normalizers.Strip()))
    ),
    "shortened": lambda: wrapped(
        changed(lambda backend: setattr(backend, "normalizer", normalizers.Replace(Regex(" +"), " ")))
    ),
    "replaced by less": lambda: wrapped(
        changed(lambda backend: setattr(backend, "normalizer", normalizers.Replace("aa", "a")))
    ),
    "removed": lambda: wrapped(
        changed(
            lambda backend: setattr(
                backend,
                "pre_tokenizer",
                pre_tokenizers.Sequence(
                    [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                ),
            )
        )
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_is_said_where_a_text_may_vanish(name: str) -> None:
    assert fewest(UNKNOWN[name]())("a" * 100_000) == 0


def test_a_prompt_that_cannot_fit_is_refused_by_its_size(tmp_path: Path) -> None:
    tokenizer = TokenizerWrapper(tiny.write_tokenizer(tmp_path))
    long = "xyz " * 100_000
    least = fewest(tokenizer)(long)
    assert 1000 < least < len(tokenizer.encode(long))
    for template in (None, "{{ messages[0].content }}"):
        prompts = Prompts(tokenizer, 321, 1000, chat_template=template)
        for prompt, param in ((Text(long), "prompt"), (Chat([{"role": "user", "content": long}]), "messages")):
            with pytest.raises(ContextLengthExceeded, match=r"1000 tokens, .* at least \d+ tokens$") as refusal:
                prompts.encode(Generation(prompt, 10))
            assert refusal.value.param == param
    # A template that takes little of it is heard first.
    prompts = Prompts(tokenizer, 321, 1000, chat_template="{{ messages[0].content[:4] }}")
    assert len(prompts.encode(Generation(Chat([{"role": "user", "content": long}]), 10))[0]) <= 4
    # Without a limit nothing is too long.
    Prompts(tokenizer, 321, None).encode(Generation(Text(long[:80_000]), 10))
