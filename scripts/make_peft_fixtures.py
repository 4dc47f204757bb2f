"""Writes tests/loaders/peft: tiny models, the adapters that PEFT saves for them, and the logits that PEFT computes.

Run where `torch`, `transformers<5` (whose experts are still separate layers) and `peft` are installed; none of them is
needed to run the tests. `python scripts/make_peft_fixtures.py tests/loaders/peft`
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TOKENS = [[1, 5, 9, 40, 3, 17, 22, 22, 8, 47, 0, 31]]

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    # Weights of the usual 0.02 would leave too little for an adapter to change.
    "initializer_range": 0.3,
}


def models() -> dict[str, PreTrainedModel]:
    llama = SIZES | {"attention_bias": True}
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False)),
        "tied": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "mixtral": MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)),
        "qwen3_moe": Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **SIZES,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=8,
                decoder_sparse_step=1,
                norm_topk_prob=True,
                tie_word_embeddings=False,
            )
        ),
    }


#: Adapter → its model, its LoraConfig and what `save_pretrained` is told.
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj", "down_proj"]}, {}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": r".*\.(self_attn\.[qkv]|mlp\.gate)_proj",
            "exclude_modules": r"model\.layers\.0\.self_attn\.v_proj",
            "rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 2, "layers.0.mlp.gate_proj": 3},
            "alpha_pattern": {"gate_proj": 9, r"layers\.\d+\.self_attn\.k_proj": 1},
        },
        {},
    ),
    "one_layer": (
        "llama",
        {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {},
    ),
    "all_linear": ("llama", {"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"}, {}),
    "dora": ("llama", {"r": 3, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}, {}),
    "head": (
        "llama",
        {"r": 3, "target_modules": ["lm_head", "v_proj"]},
        {"save_embedding_layers": False},
    ),
    "embedding": (
        "llama",
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
        {"save_embedding_layers": False},
    ),
    "saved_embedding": ("llama", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}, {}),
    "dora_embedding": (
        "llama",
        {"r": 2, "use_dora": True, "target_modules": ["embed_tokens"]},
        {"save_embedding_layers": False},
    ),
    "tied_embedding": (
        "tied",
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
        {"save_embedding_layers": False},
    ),
    "tied_head": (
        "tied",
        {"r": 3, "lora_alpha": 6, "target_modules": ["lm_head", "q_proj"]},
        {"save_embedding_layers": False},
    ),
    "tied_both": (
        "tied",
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head"]},
        {"save_embedding_layers": False},
    ),
    "tied_together": (
        "tied",
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"save_embedding_layers": False},
    ),
    "tied_dora_head": (
        "tied",
        {"r": 3, "use_dora": True, "target_modules": ["lm_head", "k_proj"]},
        {"save_embedding_layers": False},
    ),
    "experts": (
        "mixtral",
        {
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["w1", "w2", "w3", "q_proj", "gate"],
            "exclude_modules": r".*layers\.1\.block_sparse_moe\.experts\.2\..*",
            "rank_pattern": {r"experts\.3\.w1": 4, r"layers\.0\..*\.w2": 3},
        },
        {},
    ),
    "gated_experts": ("qwen3_moe", {"r": 2, "target_modules": ["gate_proj", "down_proj", "k_proj"]}, {}),
}


def main(folder: Path) -> None:
    torch.manual_seed(7)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = torch.tensor(TOKENS)
    logits: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, model in models().items():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            model.save_pretrained(folder / "models" / name)
            (folder / "models" / name / "generation_config.json").unlink()
            logits[name] = model.eval()(tokens).logits
        for name, (base, config, saving) in ADAPTERS.items():
            model = type(models()[base]).from_pretrained(folder / "models" / base)
            # Cut the adapter's configuration loose from where this ran.
            model.config._name_or_path = model.name_or_path = base  # noqa: SLF001
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
            for path, parameter in adapted.named_parameters():
                if "magnitude" in path:
                    parameter.mul_(torch.rand_like(parameter) + 0.5)
                elif "lora_" in path and not (config.get("ensure_weight_tying") and "lm_head" in path):
                    parameter.copy_(torch.randn_like(parameter) * 0.4)
            adapted.save_pretrained(folder / "adapters" / name, **saving)
            (folder / "adapters" / name / "README.md").unlink()
            logits[name] = adapted.eval()(tokens).logits
    save_file({name: value.contiguous() for name, value in logits.items()}, folder / "logits.safetensors")
    bases = {name: base for name, (base, _, _) in ADAPTERS.items()}
    (folder / "expected.json").write_text(json.dumps({"tokens": TOKENS, "bases": bases}, indent=1) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
