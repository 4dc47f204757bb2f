"""What the KV caches of a model's sequences will take, guessed from its config. No mlx, and nothing is loaded.

An engine knows better, having the model (`engine/caches.py`); this is for what must be known before a load. The keys
are those of the architectures that mlx-lm has. Of one that is not understood in part the guess is a high one: layers
that are not known to do with less keep all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mlx_roster.core import CacheSize, group_size

#: Tokens of one sequence that are reserved for in any case, and counted on where a model does not say its context.
LIKELY_TOKENS = 8192

#: Where a config says how many positions the model was made for; the first that is there counts.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num")
_HEAD_DIM = ("head_dim", "attention_head_dim", "head_size", "kv_channels", "hidden_size_per_head")
_WINDOW = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "attention_chunk_size")

#: Families without attention, and those whose layers have both kinds of cache.
_RECURRENT = ("mamba", "mamba2", "falcon_mamba", "rwkv6", "rwkv7")
_BOTH = ("falcon_h1",)
#: With low-rank keys and values, mlx-lm caches the compressed ones, but for these families.
_EXPANDED = ("deepseek_v2", "minicpm3", "youtu_llm")
_TWICE = ("longcat_flash", "longcat_flash_ngram")

#: More than any config says in earnest.
_MOST = 2**26
_MOST_LAYERS = 10_000

Kind = Literal["full", "windowed", "recurrent", "none"]


class Quantized(NamedTuple):
    """Bits of a number in the caches that keep all tokens, and how many numbers share a scale, or fewer."""

    bits: int
    group_size: int = 64


def cache_size(config: Mapping[str, Any], width: int = 2, quantized: Quantized | None = None) -> CacheSize | None:
    """What one sequence takes, with keys and values of `width` bytes. None where the config does not say enough."""
    read = _Config(config)
    kinds = _kinds(read)
    full = _token(read, "full") if "full" in kinds else _NOTHING
    windowed = _token(read, "windowed") if "windowed" in kinds else _NOTHING
    if not kinds or full is None or windowed is None:
        return None
    return CacheSize(
        per_token=full.bytes(width, quantized) * kinds.count("full"),
        windowed=windowed.bytes(width) * kinds.count("windowed"),
        window=(windowed.heads and read.number(*_WINDOW)) or 0,
        fixed=_state(read) * (len(kinds) if read.family in _BOTH else kinds.count("recurrent")),
    )


def context(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model was made for, None where its config does not say."""
    return _Config(config).number(*_CONTEXT)


def reserve(size: CacheSize | None, weights: int, tokens: int | None, sequences: int) -> int:
    """Bytes to keep free for the caches of running sequences, each of at most `tokens`.

    All that they can come to take would keep most models from ever being loaded together: 32 sequences of 128 Ki tokens
    are more than any machine has, and hardly ever there. So it is at most what one sequence of a likely length takes,
    or a quarter of `weights` where that is more. What is needed beyond is taken from what is free at the time, and
    given back; where nothing is free, sequences wait for each other.
    """
    if size is None:
        return 0
    tokens = LIKELY_TOKENS if tokens is None else tokens
    return min(sequences * size.bytes(tokens), max(size.bytes(min(tokens, LIKELY_TOKENS)), weights // 4))


class _Config:
    """A config that is believed in nothing: numbers that are none, or impossible, count as not there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = [config.get(key) for key in ("text_config", "llm_config", "language_config")]
        # That of a model that also sees or hears keeps what is about its language model apart.
        merged: dict[str, Any] = dict(config)
        for part in inner:
            if isinstance(part, dict):
                merged.update(part)
        self._config = merged
        # The outer one's name is what decides on the code, the inner one's says what that is made of.
        self.family = str(merged.get("model_type", "")).removesuffix("_text")

    def number(self, *names: str, most: int = _MOST) -> int | None:
        """The first of `names` that is a number."""
        found = (self._config.get(name) for name in names)
        return next((value for value in found if type(value) is int and 0 < value <= most), None)

    def strings(self, *names: str) -> list[str] | None:
        """The first of `names` that is a list of words, or a word, which counts as its letters."""
        for name in names:
            value = self._config.get(name)
            if isinstance(value, str) and value:
                return list(value)
            if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
                return list(value)
        return None

    def numbers(self, *names: str) -> list[int] | None:
        """The first of `names` that is a list of whole numbers."""
        found = (self._config.get(name) for name in names)
        lists = (value for value in found if isinstance(value, list) and value)
        return next((value for value in lists if all(type(one) is int for one in value)), None)

    def section(self, name: str) -> _Config:
        """A part of the config, empty where it is not there."""
        part = self._config.get(name)
        return _Config(part if isinstance(part, dict) else {})


def _kinds(read: _Config) -> list[Kind]:
    """What cache each layer has; empty where the number of layers is not known."""
    count = read.number(*_LAYERS, most=_MOST_LAYERS) or 0
    if read.family in _RECURRENT:
        return ["recurrent"] * count
    kinds = _named(read, count) or _numbered(read, count) or ["full"] * count
    if read.number(*_WINDOW) is None or read.number("attention_window_size"):
        # A window that is not said is none; and one of this name is that of all attention.
        swap: dict[Kind, Kind] = {"full": "windowed"} if read.number("attention_window_size") else {"windowed": "full"}
        kinds = [swap.get(kind, kind) for kind in kinds]
    # The last layers of some use the caches of those before.
    shared = read.number("num_kv_shared_layers", most=count) or 0
    return kinds[: count - shared]


def _named(read: _Config, count: int) -> list[Kind]:
    """Layers that the config calls by name, one after another, or in a pattern that repeats."""
    names = read.strings(
        "layer_types", "layers_block_type", "block_types", "hybrid_override_pattern", "sliding_window_pattern"
    )
    return [_kind(names[index % len(names)]) for index in range(count)] if names else []


def _kind(name: str) -> Kind:
    if name in ("-", "E") or any(part in name for part in ("moe", "mlp")):
        return "none"
    if name == "L" or any(part in name for part in ("sliding", "local", "chunked", "window")):
        return "windowed"
    if name == "M" or any(part in name for part in ("linear", "mamba", "conv", "recurrent", "ssm")):
        return "recurrent"
    return "full"


def _numbered(read: _Config, count: int) -> list[Kind]:
    """Layers that the config tells apart by their numbers. Those with full attention are the rarer ones."""
    layers = range(count)
    if marks := read.numbers("hybrid_layer_pattern"):
        return ["windowed" if marks[index % len(marks)] else "full" for index in layers]
    if every := read.number("sliding_window_pattern"):
        return ["windowed" if (index + 1) % every else "full" for index in layers]
    if every := read.number("full_attention_interval", "layer_group_size"):
        return ["recurrent" if (index + 1) % every else "full" for index in layers]
    if period := read.number("attn_layer_period"):
        offset = read.number("attn_layer_offset") or 0
        return ["full" if index % period == offset else "recurrent" for index in layers]
    if full := read.numbers("full_attn_idxs"):
        return ["full" if index in full else "recurrent" for index in layers]
    if full := read.section("linear_attn_config").numbers("full_attn_layers"):
        return ["full" if index + 1 in full else "recurrent" for index in layers]
    return []


class _Token(NamedTuple):
    """What one token leaves in the cache of one layer: a vector of each of `widths`, for each of `heads`."""

    heads: int
    widths: tuple[int, ...]

    def bytes(self, width: int, quantized: Quantized | None = None) -> int:
        numbers = self.heads * sum(self.widths)
        group = quantized and group_size(quantized.group_size, *self.widths)
        if not quantized or not group:
            # One that cannot be quantized is not going to be loaded.
            return width * numbers
        # Each group has a scale and a bias.
        return numbers * quantized.bits // 8 + numbers // group * 2 * width


_NOTHING = _Token(0, ())


def _token(read: _Config, kind: Kind) -> _Token | None:
    heads = read.number(*_HEADS)
    rotated = read.number("qk_rope_head_dim") or 0
    if rank := read.number("kv_lora_rank"):
        if read.family in _EXPANDED and heads:
            keys = (read.number("qk_nope_head_dim") or 0) + rotated
            return _Token(heads, (keys, read.number("v_head_dim") or 0))
        # Sparse attention has a second cache, of what it chooses by.
        chosen = 2 * (read.number("index_head_dim") or 0)
        return _Token(2 if read.family in _TWICE else 1, (rank, rotated, chosen))
    few, wide = ("swa_num_key_value_heads",), ("swa_head_dim",)
    if kind == "full":
        few, wide = ("num_global_key_value_heads",), ("global_head_dim",)
    hidden = read.number(*_HIDDEN)
    dim = read.number(*wide, *_HEAD_DIM) or (hidden // heads if hidden and heads else None)
    kv_heads = read.number(*few, *_KV_HEADS) or heads
    if dim is None or kv_heads is None:
        return None
    return _Token(kv_heads, (dim, read.number("v_head_dim") or dim))


def _state(read: _Config) -> int:
    """Bytes of what a layer that is not attention keeps: numbers in float32, and those of a few tokens' convolution."""
    own = read.section("linear_attn_config")
    heads = read.number("linear_num_value_heads", "mamba_num_heads", "mamba_n_heads", "num_heads")
    dim = read.number("linear_value_head_dim", "mamba_head_dim", "mamba_d_head", "head_dim")
    heads, dim = own.number("num_heads") or heads, own.number("head_dim") or dim
    hidden = read.number("lru_width", *_HIDDEN) or 0
    if heads and dim:
        inner = heads * dim
    else:
        inner = read.number("mamba_d_ssm", "d_inner") or hidden * (read.number("mamba_expand", "expand") or 1)
        dim = hidden // (read.number(*_HEADS) or hidden or 1)
    depth = read.number("linear_key_head_dim", "ssm_state_size", "mamba_d_state", "state_size", "d_state")
    if depth is None:
        # One that only convolves, or keeps one number of each channel.
        depth = 1 if read.number("lru_width", "conv_L_cache", "conv1d_width") else dim
    kernel = read.number("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv1d_width", "conv_L_cache") or 4
    return 4 * inner * (depth + kernel)
