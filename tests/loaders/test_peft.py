"""PEFT's adapters: names and configs as PEFT has them, and each tensor that does not fit is named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_roster.core import AdapterSource
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.tensors import Target
from tests.loaders.adapter_folders import (
    EMBEDDING,
    EXPERTS,
    LAYER,
    TARGETS,
    lora,
    offenders,
    refused,
    same,
    write_mlxlm,
    write_peft,
)

ADAPTERS = Path(__file__).parent / "peft" / "adapters"
SECOND = "model.layers.1.self_attn.q_proj"
EMBEDDED = {
    f"{EMBEDDING}.lora_embedding_A": mx.ones((2, 20)),
    f"{EMBEDDING}.lora_embedding_B": mx.ones((8, 2)),
}


def full(names: Mapping[str, object]) -> list[str]:
    return sorted(f"base_model.model.{name}" for name in names)


def experts(*numbers: int, rank: int = 2, projection: str = "up_proj") -> dict[str, mx.array]:
    pairs = [lora(f"model.layers.0.mlp.experts.{number}.{projection}", rank, 8, 4) for number in numbers]
    return {name: tensor for pair in pairs for name, tensor in pair.items()}


@pytest.mark.parametrize("name", ["plain", "dora", "gated_experts"])
def test_a_peft_adapter_equals_the_mlx_lm_adapter_converted_from_it(name: str, tmp_path: Path) -> None:
    tensors = mx.load(str(ADAPTERS / name / "adapter_model.safetensors"))
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    source = write_mlxlm(
        tmp_path,
        converted(tensors),
        fine_tune_type="dora" if config["use_dora"] else "lora",
        lora_parameters={"rank": config["r"], "scale": config["lora_alpha"] / config["r"], "dropout": 0.0},
    )
    targets = dict(_targets(tensors))
    peft = Adapters().read(AdapterSource(name, str(ADAPTERS / name)), targets)
    assert len(peft.layers) > 3
    assert same(peft, Adapters().read(source, targets))


def converted(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """What a converter to mlx-lm's format writes: the same matrices by mlx-lm's names, those of experts stacked."""
    renamed: dict[str, mx.array] = {}
    stacks: dict[str, list[mx.array]] = {}
    for name, tensor in sorted(tensors.items()):
        path = name.removeprefix("base_model.model.").removesuffix(".weight")
        path = path.replace("lora_magnitude_vector", "m").replace("lora_A", "lora_a").replace("lora_B", "lora_b")
        before, found, after = path.partition(".experts.")
        if found:
            stacks.setdefault(f"{before}.switch_mlp.{after.partition('.')[2]}", []).append(tensor)
        else:
            renamed[path] = tensor if path.endswith(".m") else tensor.T
    return renamed | {path: mx.stack(parts) for path, parts in stacks.items()}


def _targets(tensors: Mapping[str, mx.array]) -> Any:
    """Layers that these tensors, which are right, fit."""
    for name, tensor in converted(tensors).items():
        path, _, side = name.rpartition(".")
        if side == "lora_a":
            b = converted(tensors)[f"{path}.lora_b"]
            if tensor.ndim == 3:
                yield path, Target("experts", tensor.shape[2], b.shape[1], tensor.shape[0])
            else:
                yield path, Target("linear", tensor.shape[0], b.shape[1])


def test_matrices_are_turned_round_and_scaled(tmp_path: Path) -> None:
    tensors = lora(LAYER)
    pair = Adapters().read(write_peft(tmp_path, tensors), TARGETS).layers[LAYER]
    assert mx.array_equal(pair.a, tensors[f"{LAYER}.lora_A.weight"].T)
    assert mx.array_equal(pair.b, tensors[f"{LAYER}.lora_B.weight"].T * 2)


def test_names_may_hold_the_default_adapters(tmp_path: Path) -> None:
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora(LAYER).items()}
    assert Adapters().read(write_peft(tmp_path, tensors), TARGETS).layers.keys() == {LAYER}
    twice = tensors | lora(LAYER)
    assert len(offenders(refused(write_peft(tmp_path, twice)))) == 2


@pytest.mark.parametrize("suffix", ["", ".weight", ".default", ".default.weight"])
def test_magnitudes_have_several_names(tmp_path: Path, suffix: str) -> None:
    magnitude = mx.random.uniform(shape=(6,))
    tensors = lora(LAYER) | {f"{LAYER}.lora_magnitude_vector{suffix}": magnitude}
    weights = Adapters().read(write_peft(tmp_path, tensors, use_dora=True), TARGETS)
    assert mx.array_equal(weights.layers[LAYER].magnitude, magnitude)


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.0.q", "model.layers.0.q"),
        ("layers.0.q", "model.layers.0.q"),
        ("model.layers.0.q", "layers.0.q"),
        ("model.layers.0.q", "language_model.model.layers.0.q"),
        ("model.language_model.layers.0.q", "language_model.model.layers.0.q"),
        ("language_model.model.layers.0.q", "model.layers.0.q"),
        ("lm_head", "language_model.lm_head"),
    ],
)
def test_modules_are_found_however_the_language_model_is_wrapped(tmp_path: Path, module: str, layer: str) -> None:
    targets = {layer: Target("linear", 8, 6)}
    assert Adapters().read(write_peft(tmp_path, lora(module)), targets).layers.keys() == {layer}


def test_a_module_that_could_be_either_of_two_layers_is_neither(tmp_path: Path) -> None:
    target = Target("linear", 8, 6)
    targets = {"model.layers.0.q": target, "language_model.layers.0.q": target}
    assert len(offenders(refused(write_peft(tmp_path, lora("layers.0.q")), targets))) == 2
    assert Adapters().read(write_peft(tmp_path, lora("model.layers.0.q")), targets).layers.keys() == {
        "model.layers.0.q"
    }


def test_two_modules_for_one_layer_are_refused(tmp_path: Path) -> None:
    message = refused(write_peft(tmp_path, lora(LAYER) | lora(LAYER.removeprefix("model."))))
    assert offenders(message) == full(lora(LAYER))
    assert "for the same layer as" in message


@pytest.mark.parametrize(("projection", "number"), [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")])
@pytest.mark.parametrize("stack", ["switch_mlp", "experts"])
def test_experts_go_by_names_and_by_numbers(tmp_path: Path, projection: str, number: str, stack: str) -> None:
    path = f"model.layers.0.mlp.{stack}.{projection}"
    for called in (projection, number):
        tensors = experts(0, 2, projection=called)
        pair = Adapters().read(write_peft(tmp_path, tensors), {path: Target("experts", 8, 4, 3)}).layers[path]
        one = tensors[f"model.layers.0.mlp.experts.2.{called}.lora_A.weight"]
        assert mx.array_equal(pair.a[2], one.T)
        assert not mx.any(pair.a[1]).item()


def test_experts_of_several_ranks_are_padded(tmp_path: Path) -> None:
    tensors = experts(0) | experts(1, rank=3)
    source = write_peft(tmp_path, tensors, rank_pattern={"experts.1.up_proj": 3}, alpha_pattern={"experts.1.*": 9})
    pair = Adapters().read(source, TARGETS).layers[EXPERTS]
    assert (pair.a.shape, pair.b.shape) == ((3, 8, 3), (3, 3, 4))
    for number, scale in ((0, 2.0), (1, 3.0)):
        a, b = (tensors[f"model.layers.0.mlp.experts.{number}.up_proj.lora_{side}.weight"] for side in "AB")
        assert mx.allclose(pair.a[number] @ pair.b[number], (b @ a).T * scale, atol=1e-6)


def test_experts_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    assert offenders(refused(write_peft(tmp_path, experts(0, 3)))) == full(experts(3))
    assert len(offenders(refused(write_peft(tmp_path, experts(10**20))))) == 2


def test_dora_on_experts_is_refused(tmp_path: Path) -> None:
    tensors = experts(0) | {"model.layers.0.mlp.experts.0.up_proj.lora_magnitude_vector": mx.ones((4,))}
    message = refused(write_peft(tmp_path, tensors, use_dora=True))
    assert offenders(message) == full(tensors)
    assert "DoRA on the experts" in message


def test_a_head_goes_to_the_embedding_of_tokens_where_there_are_others(tmp_path: Path) -> None:
    position = Target("embedding", 5, 8)
    source = write_peft(tmp_path, lora("lm_head", 2, 8, 20))
    weights = Adapters().read(source, {**TARGETS, "model.positions": position})
    assert (weights.layers.keys(), weights.heads.keys()) == (set(), {EMBEDDING})
    message = refused(source, {"model.positions": position, "model.segments": position})
    assert offenders(message) == full(lora("lm_head"))


def test_a_head_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    message = refused(write_peft(tmp_path, lora("lm_head", 2, 8, 21)))
    assert offenders(message) == ["base_model.model.lm_head.lora_B.weight"]


def test_embeddings_and_linear_layers_are_told_apart(tmp_path: Path) -> None:
    linear = {f"{LAYER}.lora_embedding_A": mx.ones((2, 8)), f"{LAYER}.lora_embedding_B": mx.ones((6, 2))}
    for tensors in (linear, lora(EMBEDDING, 2, 20, 8), EMBEDDED | lora(EMBEDDING, 2, 20, 8)):
        assert offenders(refused(write_peft(tmp_path, tensors))) == full(tensors)


def test_every_tensor_that_makes_no_pair_is_named(tmp_path: Path) -> None:
    wrong = {
        f"{SECOND}.lora_A.weight": mx.ones((2, 9)),
        f"{SECOND}.lora_B.weight": mx.ones((6, 3)),
        "model.norm.lora_A.weight": mx.ones((2, 8)),
        "lora_A.weight": mx.ones((2, 8)),
        "model.layers.0.mlp.experts.0.up_proj.lora_A.weight": mx.ones((2, 8)),
        f"{LAYER}.lora_B.bias": mx.ones((6,)),
        f"{EMBEDDING}.lora_embedding_A": mx.full((2, 20), mx.inf),
        f"{EMBEDDING}.lora_embedding_B": mx.ones((8, 2), dtype=mx.int8),
        f"{EXPERTS}.lora_A.weight": mx.ones((2, 8)),
        "model.embed_tokens.weight": mx.ones((20, 8)),
        "model.score.modules_to_save.weight": mx.ones((2, 8)),
    }
    source = write_peft(tmp_path, lora(LAYER) | wrong)
    message = refused(source)
    assert sorted(offenders(message)) == full(wrong)
    assert f"{SECOND}.lora_A.weight: shape (2, 9), where it should be (2, 8)" in message
    assert "save_embedding_layers=False" in message
    mx.save_safetensors(f"{source.path}/adapter_model.safetensors", lora(LAYER))
    assert offenders(refused(source)) == sorted(lora(LAYER))


def test_dora_and_its_magnitudes_go_together(tmp_path: Path) -> None:
    magnitude = {f"{LAYER}.lora_magnitude_vector": mx.ones((6,))}
    assert offenders(refused(write_peft(tmp_path, use_dora=True))) == full(lora(LAYER))
    assert offenders(refused(write_peft(tmp_path, lora(LAYER) | magnitude))) == full(lora(LAYER) | magnitude)
    wide = {f"{LAYER}.lora_magnitude_vector": mx.ones((8,))}
    assert offenders(refused(write_peft(tmp_path, lora(LAYER) | wide, use_dora=True))) == full(wide)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 3}, 1.5),
        ({"lora_alpha": 0.5}, 0.25),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"alpha_pattern": {r"model\.layers\.\d\.self_attn\.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {r"^model\.layers\.0.*q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"v_proj": 7, "q_proj": 1, "self_attn.q_proj": 9}}, 0.5),
        ({"alpha_pattern": {"proj": 1, "model": 1, "_proj": 1, "0.self_attn": 1}}, 2.0),
        ({"r": 9, "rank_pattern": {"q_proj": 2}}, 2.0),
        ({"r": 9, "rank_pattern": {"layers.0.*": 2}, "use_rslora": True}, 4 / math.sqrt(2)),
        ({"rank_pattern": None, "alpha_pattern": None, "use_rslora": None, "lora_alpha": 4}, 2.0),
    ],
)
def test_scales(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    tensors = lora(LAYER)
    pair = Adapters().read(write_peft(tmp_path, tensors, **config), TARGETS).layers[LAYER]
    assert mx.allclose(pair.b, tensors[f"{LAYER}.lora_B.weight"].T * scale)


def test_a_rank_unlike_the_configured_one_is_refused(tmp_path: Path) -> None:
    both = lora(LAYER) | lora(SECOND, rank=3)
    assert offenders(refused(write_peft(tmp_path, both))) == full(lora(SECOND))
    config = {"r": 3, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}
    assert Adapters().read(write_peft(tmp_path, both, **config), TARGETS).layers.keys() == {LAYER, SECOND}


@pytest.mark.parametrize("config", [{"r": 0}, {"r": 513}, {"rank_pattern": {"q_proj": 0}}, {"r": -1}])
def test_a_rank_that_cannot_be_served_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "ranks from 1 to 512" in refused(write_peft(tmp_path, **config))


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        ({"target_modules": ["q_proj"]}, "01"),
        ({"target_modules": "all-linear"}, "01"),
        ({"target_modules": "All-Linear"}, "01"),
        ({"target_modules": []}, ""),
        ({"target_modules": ["proj"]}, ""),
        ({"target_modules": ["0.self_attn.q_proj"]}, "0"),
        ({"target_modules": [LAYER]}, "0"),
        ({"target_modules": r".*\.q_proj"}, "01"),
        ({"target_modules": r"q_proj"}, ""),
        ({"target_modules": r"model\.layers\.[1-9]\..*"}, "1"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, ""),
        ({"target_modules": ["q_proj"], "exclude_modules": [SECOND]}, "0"),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*0\.self.*"}, "1"),
        ({"target_modules": None, "exclude_modules": r".*0\.self.*"}, "1"),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, "0"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 7]}, "1"),
        ({"target_modules": ["q_proj"], "layers_to_transform": []}, "01"),
        ({"target_modules": [SECOND], "layers_to_transform": [0]}, "1"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}, "0"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]}, "0"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "h"}, ""),
    ],
)
def test_tensors_are_where_the_config_says(tmp_path: Path, config: dict[str, Any], taken: str) -> None:
    source = write_peft(tmp_path, lora(LAYER) | lora(SECOND), **config)
    wanted = {f"model.layers.{layer}.self_attn.q_proj" for layer in taken}
    rest = {LAYER, SECOND} - wanted
    if rest:
        assert sorted(offenders(refused(source))) == full({name for path in rest for name in lora(path)})
    else:
        assert Adapters().read(source, TARGETS).layers.keys() == wanted


def test_layers_are_not_mistaken_for_experts(tmp_path: Path) -> None:
    config = {"target_modules": ["up_proj"], "layers_to_transform": [0]}
    assert Adapters().read(write_peft(tmp_path, experts(1, 2), **config), TARGETS).layers.keys() == {EXPERTS}


@pytest.mark.parametrize(
    "config",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"megatron_config": {"a": 1}},
        {"arrow_config": {"a": 1}},
        {"kasa_config": {"a": 1}},
        {"use_bdlora": {"a": 1}},
        {"monteclora_config": {"a": 1}},
        {"velora_config": {"a": 1}},
        {"something_of_next_year": 1},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "of_next_year"},
        {"target_modules": "all-linear", "layers_to_transform": [0]},
        {"lora_alpha": "1"},
        {"lora_alpha": float("inf")},
        {"alpha_pattern": {"q_proj": float("nan")}},
        {"lora_alpha": 10**400},
        {"r": 2.5},
        {"r": True},
        {"use_rslora": 1},
        {"rank_pattern": {"q_proj": "2"}},
        {"rank_pattern": ["q_proj"]},
        {"target_modules": 3},
        {"target_modules": ["q_proj"], "layers_to_transform": ["0"]},
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, config: dict[str, Any]) -> None:
    assert list(config)[-1] in refused(write_peft(tmp_path, **config))


@pytest.mark.parametrize("kind", ["LOHA", "lora", None, 3])
def test_other_methods_of_peft_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    assert f"its peft_type is {kind!r}" in refused(write_peft(tmp_path, peft_type=kind))


@pytest.mark.parametrize(
    "config",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
        {"fan_in_fan_out": True, "lora_dropout": 0.1, "inference_mode": True, "task_type": "CAUSAL_LM"},
        {"megatron_core": "megatron.core", "qalora_group_size": 16, "loftq_config": {}, "peft_version": "0.21.2"},
        {"base_model_name_or_path": "org/model", "revision": "main", "auto_mapping": {"base_model_class": "X"}},
        {"something_of_next_year": None, "more_of_it": False, "and_more": []},
        {"layers_pattern": "layers"},
    ],
)
def test_what_changes_nothing_is_taken(tmp_path: Path, config: dict[str, Any]) -> None:
    assert Adapters().read(write_peft(tmp_path, **config), TARGETS).layers.keys() == {LAYER}


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
@pytest.mark.parametrize(
    "pattern",
    [
        "(?R)*",
        "(?:a){e<=9}",
        "(" * 5000 + ")" * 5000,
        "(",
        "x" * 20_000,
        "*",
        "(?:a){99999999999999999999}",
    ],
)
def test_malicious_patterns_are_refused(tmp_path: Path, pattern: str, key: str) -> None:
    module = "a" * 500
    config: dict[str, Any] = {"target_modules": [module], key: {pattern: 2} if key == "rank_pattern" else pattern}
    message = refused(write_peft(tmp_path, lora(module), **config), {module: Target("linear", 8, 6)})
    assert "a pattern in its adapter_config.json" in message
    assert len(message) < 500


def test_a_pattern_that_would_match_forever_is_refused(tmp_path: Path) -> None:
    module = "a" * 500
    source = write_peft(tmp_path, lora(module), target_modules=r"(a?){500}(a){500}")
    message = refused(source, {module: Target("linear", 8, 6)})
    assert "matching the patterns in its adapter_config.json takes longer than 3 seconds" in message


def test_a_folder_as_peft_writes_it_is_read(tmp_path: Path) -> None:
    folder = shutil.copytree(ADAPTERS / "plain", tmp_path / "plain")
    (folder / "README.md").write_text("x")
    tensors = mx.load(str(folder / "adapter_model.safetensors"))
    assert len(Adapters().read(AdapterSource("plain", str(folder)), dict(_targets(tensors))).layers) == 6
