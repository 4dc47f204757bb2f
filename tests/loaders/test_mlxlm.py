"""mlx-lm's adapters: what its own layers compute is what is read, and each tensor that does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from mlx_roster.loaders.adapters import Adapters
from tests.loaders.adapter_folders import (
    EMBEDDING,
    EXPERTS,
    LAYER,
    TARGETS,
    lay_in,
    offenders,
    refused,
    targets_of,
    write_mlxlm,
)

TOKENS = mx.array([[1, 5, 9, 40, 3, 17, 22]])
LINEAR = {f"{LAYER}.lora_a": mx.ones((8, 2)), f"{LAYER}.lora_b": mx.ones((2, 6))}
EXPERTS_ALONE = {f"{EXPERTS}.lora_a": mx.ones((3, 2, 8)), f"{EXPERTS}.lora_b": mx.ones((3, 4, 2))}


def model(name: str) -> nn.Module:
    return load_model(Path(__file__).parent / "peft" / "models" / name)[0]


@pytest.mark.parametrize(
    ("base", "kind", "keys"),
    [
        ("llama", "lora", ["self_attn.q_proj", "mlp.down_proj"]),
        ("llama", "lora", ["model.embed_tokens", "lm_head", "self_attn.v_proj"]),
        ("llama", "dora", ["self_attn.q_proj", "mlp.up_proj", "model.embed_tokens"]),
        ("tied", "lora", ["model.embed_tokens", "self_attn.k_proj"]),
        ("tied", "dora", ["model.embed_tokens"]),
        ("mixtral", "lora", ["block_sparse_moe.switch_mlp.gate_proj", "block_sparse_moe.switch_mlp.down_proj"]),
        ("qwen3_moe", "lora", None),
    ],
)
def test_what_mlx_lm_computes_is_read(base: str, kind: str, keys: list[str] | None, tmp_path: Path) -> None:
    mx.random.seed(3)
    parameters: dict[str, Any] = {"rank": 3, "scale": 2.5, "dropout": 0.0}
    parameters |= {} if keys is None else {"keys": keys}
    theirs = model(base)
    linear_to_lora_layers(theirs, 2, parameters, use_dora=kind == "dora")
    tensors = {}
    for name, value in tree_flatten(theirs.parameters()):
        if name.endswith(("lora_a", "lora_b")):
            tensors[name] = mx.random.normal(value.shape) * 0.3
        elif name.endswith(".m"):
            tensors[name] = value * mx.random.uniform(0.5, 1.5, value.shape)
    theirs.load_weights(list(tensors.items()), strict=False)
    source = write_mlxlm(tmp_path, tensors, fine_tune_type=kind, lora_parameters=parameters)
    ours = model(base)
    expected = theirs(TOKENS)
    assert mx.abs(ours(TOKENS) - expected).max().item() > 0.05
    lay_in(ours, Adapters().read(source, targets_of(ours)))
    assert mx.abs(ours(TOKENS) - expected).max().item() < 1e-4


def test_pairs_come_with_the_scale_folded_in(tmp_path: Path) -> None:
    weights = Adapters().read(write_mlxlm(tmp_path), TARGETS)
    pair = weights.layers[LAYER]
    assert (weights.name, pair.a.shape, pair.b.shape) == ("mine", (8, 2), (2, 6))
    assert (pair.magnitude, weights.heads, weights.nbytes) == (None, {}, 4 * (16 + 12))
    assert mx.array_equal(pair.b, mx.full((2, 6), 2.0))


def test_experts_are_turned_round(tmp_path: Path) -> None:
    a = mx.arange(3 * 2 * 8, dtype=mx.float32).reshape(3, 2, 8)
    source = write_mlxlm(tmp_path, EXPERTS_ALONE | {f"{EXPERTS}.lora_a": a})
    pair = Adapters().read(source, TARGETS).layers[EXPERTS]
    assert mx.array_equal(pair.a, a.swapaxes(1, 2))
    assert pair.b.shape == (3, 2, 4)


def test_an_embedding_and_its_tied_head_share_one_pair(tmp_path: Path) -> None:
    tensors = {f"{EMBEDDING}.lora_a": mx.ones((20, 2)), f"{EMBEDDING}.lora_b": mx.ones((2, 8))}
    weights = Adapters().read(write_mlxlm(tmp_path, tensors), TARGETS)
    assert weights.heads[EMBEDDING] is weights.layers[EMBEDDING]
    assert weights.nbytes == 4 * (40 + 16)


def test_magnitudes_are_kept(tmp_path: Path) -> None:
    magnitude = mx.random.uniform(shape=(6,))
    weights = Adapters().read(write_mlxlm(tmp_path, LINEAR | {f"{LAYER}.m": magnitude}, fine_tune_type="dora"), TARGETS)
    assert mx.array_equal(weights.layers[LAYER].magnitude, magnitude)
    assert weights.nbytes == 4 * (16 + 12 + 6)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: mx.Dtype) -> None:
    values = mx.random.normal((8, 2)).astype(dtype)
    pair = Adapters().read(write_mlxlm(tmp_path, LINEAR | {f"{LAYER}.lora_a": values}), TARGETS).layers[LAYER]
    assert pair.a.dtype == mx.float32
    assert mx.array_equal(pair.a, values.astype(mx.float32))


@pytest.mark.parametrize("kind", ["full", "qlora", None, ["lora"] * 1000])
def test_other_kinds_of_fine_tuning_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    message = refused(write_mlxlm(tmp_path, fine_tune_type=kind))
    assert repr(kind)[:7] in message
    assert len(message) < 300


@pytest.mark.parametrize(
    "parameters", [None, {}, {"scale": "2"}, {"scale": True}, {"scale": float("nan")}, {"scale": 10**400}, [1]]
)
def test_scale_must_be_a_number(tmp_path: Path, parameters: Any) -> None:
    assert "lora_parameters.scale" in refused(write_mlxlm(tmp_path, lora_parameters=parameters))


@pytest.mark.parametrize("rank", ["2", True, 2.0, 0, -1, 513])
def test_rank_must_be_one_that_can_be_served(tmp_path: Path, rank: Any) -> None:
    message = refused(write_mlxlm(tmp_path, lora_parameters={"scale": 1.0, "rank": rank}))
    assert f"lora_parameters.rank is {rank!r}" in message


@pytest.mark.parametrize("tensors", [LINEAR, EXPERTS_ALONE])
def test_a_rank_unlike_the_tensors_is_refused(tmp_path: Path, tensors: dict[str, mx.array]) -> None:
    message = refused(write_mlxlm(tmp_path, tensors, lora_parameters={"scale": 1.0, "rank": 3}))
    assert offenders(message) == sorted(tensors)


def test_a_rank_left_to_the_tensors_is_theirs(tmp_path: Path) -> None:
    assert Adapters().read(write_mlxlm(tmp_path, lora_parameters={"scale": 1.0}), TARGETS).layers[LAYER].a.shape == (
        8,
        2,
    )


@pytest.mark.parametrize("rank", [0, 513])
def test_a_rank_that_cannot_be_served_is_refused_in_tensors_too(tmp_path: Path, rank: int) -> None:
    tensors = {f"{LAYER}.lora_a": mx.zeros((8, rank)), f"{LAYER}.lora_b": mx.zeros((rank, 6))}
    message = refused(write_mlxlm(tmp_path, tensors, lora_parameters={"scale": 1.0}))
    assert offenders(message) == sorted(tensors)
    assert f"of rank {rank}; ranks from 1 to 512" in message


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        (["self_attn.q_proj"], True),
        ([LAYER], True),
        (["q_proj"], False),
        (["self_attn.v_proj"], False),
        ([], False),
        (None, True),
    ],
)
def test_keys_name_paths_or_paths_within_a_block(tmp_path: Path, keys: list[str] | None, taken: bool) -> None:
    source = write_mlxlm(tmp_path, lora_parameters={"scale": 1.0, "keys": keys})
    if taken:
        assert list(Adapters().read(source, TARGETS).layers) == [LAYER]
    else:
        assert offenders(refused(source)) == sorted(LINEAR)


@pytest.mark.parametrize("keys", ["q_proj", [1], {}])
def test_keys_must_be_names(tmp_path: Path, keys: Any) -> None:
    assert "lora_parameters.keys" in refused(write_mlxlm(tmp_path, lora_parameters={"scale": 1.0, "keys": keys}))


def test_dora_and_its_magnitudes_go_together(tmp_path: Path) -> None:
    magnitude = {f"{LAYER}.m": mx.ones((6,))}
    assert offenders(refused(write_mlxlm(tmp_path, fine_tune_type="dora"))) == sorted(LINEAR)
    assert offenders(refused(write_mlxlm(tmp_path, LINEAR | magnitude))) == sorted(LINEAR | magnitude)
    wide = {f"{LAYER}.m": mx.ones((8,))}
    assert offenders(refused(write_mlxlm(tmp_path, LINEAR | wide, fine_tune_type="dora"))) == list(wide)


def test_dora_on_experts_is_refused(tmp_path: Path) -> None:
    message = refused(write_mlxlm(tmp_path, EXPERTS_ALONE, fine_tune_type="dora"))
    assert "DoRA on the experts" in message


def test_every_tensor_that_makes_no_pair_is_named(tmp_path: Path) -> None:
    second = "model.layers.1.self_attn.q_proj"
    wrong = {
        "lora_a": mx.ones((8, 2)),
        f"{LAYER}.weight": mx.ones((6, 8)),
        f"{second}.lora_b": mx.ones((2, 6)),
        "model.norm.lora_a": mx.ones((8, 2)),
        "model.norm.lora_b": mx.ones((2, 8)),
        f"{EXPERTS}.lora_a": mx.ones((8, 2)),
        f"{EXPERTS}.lora_b": mx.full((3, 4, 2), mx.nan),
        f"{EMBEDDING}.lora_a": mx.ones((21, 2)),
        f"{EMBEDDING}.lora_b": mx.ones((2, 8), dtype=mx.int32),
    }
    message = refused(write_mlxlm(tmp_path, LINEAR | wrong))
    assert sorted(offenders(message)) == sorted(wrong)
    assert f"{EMBEDDING}.lora_a: shape (21, 2), where it should be (20, 2)" in message
    assert f"{EMBEDDING}.lora_b: I32 of shape (2, 8)" in message


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    odd = {f"{LAYER}.lora_a": mx.full((8, 2), value)}
    assert offenders(refused(write_mlxlm(tmp_path, LINEAR | odd))) == list(odd)


@pytest.mark.parametrize("scale", [1e38, 1e300])
def test_a_scale_that_leaves_float32_is_refused(tmp_path: Path, scale: float) -> None:
    tensors = LINEAR | {f"{LAYER}.lora_b": mx.full((2, 6), 10.0)}
    message = refused(write_mlxlm(tmp_path, tensors, lora_parameters={"scale": scale}))
    assert offenders(message) == [f"{LAYER}.lora_b"]
