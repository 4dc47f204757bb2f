"""Models with random weights, for tests that need a stream to be long rather than right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_roster.demo import directory


def babbler(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2) -> Path:
    """A random llama that never ends a sentence by itself, with the tokenizer of the demo's atlas."""
    shutil.copytree(directory() / "models" / "atlas", folder)
    config = json.loads((folder / "config.json").read_text())
    arguments = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": hidden * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "eos_token_id": config["eos_token_id"],
    }
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(arguments))
    # The logit of the end of a sentence is always 0, and so never the largest: generation ends by max_tokens.
    model.lm_head.weight[config["eos_token_id"]] = 0
    mx.eval(model.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(arguments))
    return folder
