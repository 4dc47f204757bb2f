"""How few tokens a text can come to, without tokenizing it. Never touches mlx."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from mlx_roster.engine.detokenizing import _BYTE_OF

#: NFC makes no text shorter than one byte in so many: at worst 7 bytes (a compatibility iota, two marks) come to 2.
_COMPOSED = 4


def fewest(tokenizer: Any) -> Callable[[str], int]:
    """Of one of mlx-lm's tokenizers: a number of tokens that no text has less than; 0 where nothing is certain."""
    longest = _longest(tokenizer)
    return lambda text: 0 if longest is None else -(-len(text.encode()) // longest)


def _longest(tokenizer: Any) -> int | None:
    """The most bytes of a text that one token may stand for, if that is known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _ordinary(tokenizer) or not isinstance(backend.model, BPE):
        return None
    added = backend.get_added_tokens_decoder().values()
    normalizers = list(_steps(backend.normalizer, "normalizers"))
    splitters = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    if any(token.lstrip or token.rstrip for token in added) or not all(map(_keeps, normalizers + splitters)):
        # What swallows text may swallow any amount of it.
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    names = [len(token.content.encode()) for token in added]
    if any(step["type"] == "ByteLevel" for step in splitters):
        # Each character of such a name is a byte.
        names += map(len, vocabulary)
        complete = vocabulary.keys() >= _BYTE_OF.keys()
    else:
        names += [len(name.encode()) for name in vocabulary]
        complete = backend.model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    if not complete:
        # What is in no token is left out, or a single token for all of it.
        return None
    return max(names) * (_COMPOSED if any(step["type"] == "NFC" for step in normalizers) else 1)


def _ordinary(tokenizer: Any) -> bool:
    """Whether its class leaves it to the backend what becomes of a text."""
    inner = type(getattr(tokenizer.encode, "__self__", None))
    names = ("__call__", "encode", "_encode_plus")
    return issubclass(inner, TokenizersBackend) and all(
        getattr(inner, name) in (getattr(TokenizersBackend, name), getattr(PreTrainedTokenizerBase, name, None))
        for name in names
    )


def _steps(part: Any, several: str) -> Iterator[dict[str, Any]]:
    """What a normalizer or pre-tokenizer of `tokenizers` does, one after the other."""
    if part is not None:
        described = json.loads(part.__getstate__())
        yield from described[several] if described["type"] == "Sequence" else [described]


def _keeps(step: dict[str, Any]) -> bool:
    """Whether it makes no text shorter, but for NFC."""
    match step["type"]:
        case "NFC" | "Prepend" | "Metaspace" | "ByteLevel" | "Digits":
            return True
        case "Replace":
            pattern = step["pattern"].get("String")
            return pattern is not None and len(step["content"].encode()) >= len(pattern.encode())
        case "Split" | "Punctuation":
            return bool(step["behavior"] != "Removed")
    return False
