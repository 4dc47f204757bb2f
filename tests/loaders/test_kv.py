"""What is guessed from a config of the KV caches, held to what mlx-lm makes of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache

from mlx_roster.core import CacheSize, ModelSource
from mlx_roster.engine.caches import cache_size as true_size
from mlx_roster.engine.caches import leaves, quantization_for
from mlx_roster.loaders.kv import LIKELY_TOKENS, Quantized, cache_size, context, reserve
from mlx_roster.loaders.models import load
from mlx_roster.loaders.sizes import read_config, weights
from tests.engine import tiny

#: How far off a guess may be. Keys and values are exact; states are not, and small.
FACTOR = 2

LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "topk_group": 1,
    "n_group": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "num_local_experts": 2}
WINDOW: dict[str, Any] = {"sliding_window": 8, "head_dim": 8, "num_hidden_layers": 4, "rope_theta": 1e4}

#: Beside those of the engine's tests: models that are built, and given no weights worth the name.
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT | {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    "cohere2": WINDOW | {"sliding_window_pattern": 2},
    "olmo3": WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_oss": WINDOW | EXPERTS | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2": {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "layer_norm_epsilon": 1e-5},
    "qwen3_next": EXPERTS
    | {
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 16,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [],
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    },
    "jamba": EXPERTS
    | {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
    },
    "nemotron_h": {
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "M*M-",
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 2,
        "time_step_limit": [0.0, 1.0],
        "layer_norm_epsilon": 1e-5,
        "mamba_hidden_act": "silu",
        "mlp_hidden_act": "relu2",
        **dict.fromkeys(("attention_bias", "mamba_proj_bias", "mlp_bias", "use_bias"), False),
        "use_conv_bias": True,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "full_attn_idxs": [1],
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "block_dim": 32,
        "block_ff_dim": 64,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "rope_theta": 1e4,
    },
    "granitemoehybrid": EXPERTS
    | {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_d_head": 16,
        "mamba_n_heads": 4,
        "mamba_n_groups": 1,
        **dict.fromkeys(("mamba_proj_bias", "attention_bias"), False),
        **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "logits_scaling", "residual_multiplier"), 1.0),
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "shared_intermediate_size": 16,
        "position_embedding_type": "rope",
        "rope_theta": 1e4,
    },
    "falcon_h1": {
        "head_dim": 8,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_d_head": 8,
        "mamba_n_heads": 4,
        "mamba_n_groups": 1,
        "mamba_d_ssm": 32,
        "mamba_chunk_size": 16,
        "mamba_conv_bias": True,
        "rope_theta": 1e4,
        **dict.fromkeys(("mamba_proj_bias", "mamba_norm_before_gate", "mamba_rms_norm", "projectors_bias"), False),
        **dict.fromkeys(("attention_bias", "mlp_bias"), False),
    },
    "rwkv7": {"head_dim": 16, "norm_eps": 1e-5, "norm_bias": True, "attn_mode": "chunk"}
    | {f"{name}_low_rank_dim": 8 for name in ("decay", "gate", "a", "v")},
}


def build(family: str, config: dict[str, Any]) -> Any:
    module = import_module(f"mlx_lm.models.{family}")
    return module.Model(module.ModelArgs.from_dict(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_guess_is_what_the_model_makes(family: str) -> None:
    sizes = {} if family == "gpt2" else tiny.SIZES
    config = sizes | {"model_type": family, "vocab_size": 64} | FAMILIES[family]
    guess, true = cache_size(config, 4), true_size(build(family, config))
    assert guess is not None
    assert (guess.per_token, guess.windowed, guess.window) == (true.per_token, true.windowed, true.window)
    assert true.fixed / FACTOR <= guess.fixed <= true.fixed * FACTOR


#: With heads that can be parted into groups.
PARTED: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 96},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {"head_dim": 32},
    "qwen3_next": {"head_dim": 64},
    "falcon_h1": {"head_dim": 32},
    "gpt_oss": {"head_dim": 64},
    "deepseek_v3": {"kv_lora_rank": 64, "qk_rope_head_dim": 32},
    "mamba2": {},
}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("family", PARTED)
def test_guess_of_quantized_ones_is_what_the_model_makes(family: str, bits: int) -> None:
    own = FAMILIES.get(family) or tiny.FAMILIES[family]
    config = tiny.SIZES | {"model_type": family, "vocab_size": 64} | own | PARTED[family]
    model = build(family, config)
    guess = cache_size(config, 4, Quantized(bits, 128))
    true = true_size(model, quantization_for(model, ModelSource("", "", 0, kv_bits=bits, kv_group_size=128)))
    plain = true_size(model)
    assert guess is not None
    assert (guess.per_token, guess.windowed, guess.window) == (true.per_token, true.windowed, true.window)
    assert (true.windowed, true.fixed) == (plain.windowed, plain.fixed)
    assert true.per_token < plain.per_token / 2 or not plain.per_token


@pytest.mark.parametrize(
    ("family", "dtype"),
    # On a CPU mlx has no experts in half precision.
    [*((family, mx.float32) for family in tiny.FAMILIES), ("gemma3_text", mx.bfloat16), ("mamba2", mx.bfloat16)],
)
def test_guess_is_what_a_forward_pass_takes(family: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path, family, dtype=dtype)
    model = load(tiny.source(folder), lambda done, total: None).model
    guess = cache_size(read_config(folder), weights(folder).width)
    assert guess is not None
    for length in (256, 512):
        caches = make_prompt_cache(model)
        mx.eval(model(mx.zeros((1, length), dtype=mx.int32), cache=caches))
        model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
        # What is allocated for tokens that may come is no part of it; nor is what a window had to see at once.
        taken = sum(cache.nbytes if cache.size() == 0 else _used(cache) for cache in leaves(caches))
        assert taken / FACTOR <= guess.bytes(length + 1) <= taken * FACTOR


def _used(cache: Any) -> int:
    tokens = min(cache.size(), getattr(cache, "max_size", cache.size()))
    return int(cache.nbytes // cache.keys.shape[2] * tokens)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        # As they are published: Llama 3.1 8B, Qwen3 1.7B, DeepSeek V3, Gemma 3 27B, Mistral 7B.
        (
            {
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "model_type": "llama",
            },
            CacheSize(131_072),
        ),
        (
            {
                "num_hidden_layers": 28,
                "hidden_size": 2048,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "sliding_window": None,
                "model_type": "qwen3",
            },
            CacheSize(114_688),
        ),
        (
            {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "model_type": "kimi_vl"}
            | {"text_config": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "model_type": "deepseek_v3"}},
            CacheSize(61 * 576 * 2),
        ),
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "num_hidden_layers": 62,
                    "hidden_size": 5376,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 16,
                    "head_dim": 128,
                    "sliding_window": 1024,
                    "sliding_window_pattern": 6,
                    "model_type": "gemma3_text",
                },
            },
            CacheSize(10 * 8192, 52 * 8192, 1024),
        ),
        (
            {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "sliding_window": 4096},
            CacheSize(2 * 2 * 64 * 2),
        ),
        (
            {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64, "kv_lora_rank": 8}
            | {"linear_attn_config": {"full_attn_layers": [4], "num_heads": 4, "head_dim": 16}},
            CacheSize(16, fixed=3 * 4 * 64 * (16 + 4)),
        ),
        ({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "dreamt_of": "layers"}, CacheSize(512)),
    ],
)
def test_known_models(config: dict[str, Any], size: CacheSize) -> None:
    assert cache_size(config) == size


@pytest.mark.parametrize(
    ("quantized", "per_token"),
    # Of 65,536 numbers, in 16 bits 131,072 bytes: packed, and two of 16 bits for each group.
    [
        (Quantized(8), 65_536 + 4 * 1024),
        (Quantized(4), 32_768 + 4 * 1024),
        (Quantized(3, 128), 24_576 + 4 * 512),
        (Quantized(2, 32), 16_384 + 4 * 2048),
    ],
)
def test_quantized_ones_of_a_known_model(quantized: Quantized, per_token: int) -> None:
    config = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert cache_size(config | {"model_type": "llama"}, 2, quantized) == CacheSize(per_token)


def test_layers_that_share_a_cache_count_once() -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "sliding_window": 8}
    kinds = ["sliding_attention", "full_attention"] * 2
    shared = cache_size(config | {"layer_types": kinds, "num_kv_shared_layers": 2})
    assert shared == CacheSize(per_token=64, windowed=64, window=8)


@pytest.mark.parametrize(
    "config",
    [{}, {"num_hidden_layers": 4}, {"num_hidden_layers": "4"}, {"num_hidden_layers": 10**9, "hidden_size": 8}],
)
def test_config_that_says_too_little(config: dict[str, Any]) -> None:
    assert cache_size(config) is None
    assert reserve(None, 10**9, 4096, 32) == 0


_KEYS = st.sampled_from(
    [
        *("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim", "kv_lora_rank", "text_config"),
        *("layer_types", "sliding_window", "sliding_window_pattern", "full_attention_interval", "attn_layer_period"),
        *("linear_attn_config", "num_kv_shared_layers"),
    ]
)
_PLAIN = st.none() | st.booleans() | st.integers(-9, 40) | st.just(10**30) | st.floats() | st.text(max_size=3)
_LISTS = st.lists(st.text(max_size=9) | st.integers(), max_size=3)
_VALUES = _PLAIN | _LISTS | st.dictionaries(_KEYS, st.integers(1, 9))


@given(st.dictionaries(_KEYS, _VALUES))
def test_any_config_gives_a_size_or_none(config: dict[str, Any]) -> None:
    size = cache_size(config)
    assert size is None or size.bytes(100) >= 0
    quantized = cache_size(config, 2, Quantized(4, 32))
    assert (quantized is None) == (size is None)
    assert reserve(size, 1000, context(config), 4) >= 0


def test_reserve_is_bounded() -> None:
    size = CacheSize(per_token=10, windowed=5, window=100, fixed=7)
    assert size.bytes(1000) == 7 + 10_000 + 500
    assert reserve(size, 0, 1000, 1) == 10_507
    # One of a likely length, or a quarter of the weights; never more than all could take.
    assert reserve(size, 0, 1000, 32) == 10_507
    assert reserve(size, 80_000, 1000, 32) == 20_000
    assert reserve(size, 10**9, 1000, 32) == 32 * 10_507
    assert reserve(size, 0, 10**6, 32) == size.bytes(LIKELY_TOKENS)
    assert reserve(size, 0, None, 32) == size.bytes(LIKELY_TOKENS)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({"max_position_embeddings": 512}, 512), ({"text_config": {"n_ctx": 9}}, 9), ({"n_ctx": "9"}, None), ({}, None)],
)
def test_context_is_what_the_config_says(config: dict[str, Any], tokens: int | None) -> None:
    assert context(config) == tokens
