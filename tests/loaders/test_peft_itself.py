"""What PEFT saved is read such that mlx-lm's model computes what PEFT computed (`scripts/make_peft_fixtures.py`)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import load_model

from mlx_roster.core import AdapterSource
from mlx_roster.loaders.adapters import Adapters
from tests.loaders.adapter_folders import lay_in, offenders, refused, targets_of

FOLDER = Path(__file__).parent / "peft"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
BASES: dict[str, str] = EXPECTED["bases"]
REFUSED = {"saved_embedding", "dora_embedding"}


def model(name: str) -> nn.Module:
    loaded, _ = load_model(FOLDER / "models" / name)
    return loaded


def source(name: str) -> AdapterSource:
    return AdapterSource(name, str(FOLDER / "adapters" / name))


def difference(computed: mx.array, name: str) -> float:
    expected = mx.load(str(FOLDER / "logits.safetensors"))[name]
    return float(mx.abs(computed - expected).max())


@pytest.mark.parametrize("name", sorted(set(BASES.values())))
def test_base_models_agree(name: str) -> None:
    assert difference(model(name)(mx.array(EXPECTED["tokens"])), name) < 1e-4


@pytest.mark.parametrize("name", sorted(BASES.keys() - REFUSED))
def test_adapted_models_agree(name: str) -> None:
    base = model(BASES[name])
    tokens = mx.array(EXPECTED["tokens"])
    assert difference(base(tokens), name) > 0.05
    lay_in(base, Adapters().read(source(name), targets_of(base)))
    assert difference(base(tokens), name) < 1e-4


def test_rank_and_scale_follow_the_patterns() -> None:
    weights = Adapters().read(source("patterns"), targets_of(model("llama")))
    ranks = {path: pair.a.shape[1] for path, pair in weights.layers.items()}
    assert ranks["model.layers.0.self_attn.q_proj"] == 4
    assert ranks["model.layers.1.self_attn.q_proj"] == 2
    assert ranks["model.layers.0.mlp.gate_proj"] == 3
    assert "model.layers.0.self_attn.v_proj" not in ranks
    raw = mx.load(str(FOLDER / "adapters" / "patterns" / "adapter_model.safetensors"))
    b = raw["base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"]
    assert mx.allclose(weights.layers["model.layers.0.mlp.gate_proj"].b, b.T * 9 / math.sqrt(3))


def test_experts_left_out_get_zeros_and_lower_ranks_are_padded() -> None:
    weights = Adapters().read(source("experts"), targets_of(model("mixtral")))
    up = weights.layers["model.layers.1.block_sparse_moe.switch_mlp.up_proj"]
    assert up.a.shape == (4, 16, 2)
    assert not mx.any(up.a[2]).item()
    assert mx.any(up.a[1]).item()
    gate = weights.layers["model.layers.0.block_sparse_moe.switch_mlp.gate_proj"]
    assert (gate.a.shape, gate.b.shape) == ((4, 16, 4), (4, 4, 24))
    assert not mx.any(gate.a[0, :, 2:]).item()


def test_tied_heads_and_lookups_have_their_own_pairs() -> None:
    targets = targets_of(model("tied"))
    embedding = "model.embed_tokens"
    lookup = Adapters().read(source("tied_embedding"), targets)
    assert (embedding in lookup.layers, embedding in lookup.heads) == (True, False)
    head = Adapters().read(source("tied_head"), targets)
    assert (embedding in head.layers, embedding in head.heads) == (False, True)
    assert (head.heads[embedding].a.shape, head.heads[embedding].b.shape) == ((48, 3), (3, 16))
    together = Adapters().read(source("tied_together"), targets)
    layer, tied = together.layers[embedding], together.heads[embedding]
    assert mx.allclose(layer.a @ layer.b, tied.a @ tied.b)


def test_embeddings_saved_along_are_refused_with_what_to_do() -> None:
    message = refused(source("saved_embedding"), targets_of(model("llama")))
    assert offenders(message) == ["base_model.model.model.embed_tokens.base_layer.weight"]
    assert "save_embedding_layers=False" in message


def test_dora_on_an_embedding_is_refused_by_name() -> None:
    message = refused(source("dora_embedding"), targets_of(model("llama")))
    assert "DoRA on an embedding" in message
    assert len(offenders(message)) == 3
