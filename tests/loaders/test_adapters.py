"""Adapter folders: what mlx-lm saves is read, and everything else is refused by name."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_roster.core import AdapterSource
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.adapters import Adapters, fit, read
from mlx_roster.tensors import AdapterWeights, LoraPair, Target

LAYER = "model.layers.0.self_attn.q_proj"
TARGETS = {LAYER: Target("linear", 8, 6)}


def tensors(rank: int = 2, inputs: int = 8, outputs: int = 6) -> dict[str, mx.array]:
    return {f"{LAYER}.lora_a": mx.ones((inputs, rank)), f"{LAYER}.lora_b": mx.full((rank, outputs), 0.5)}


def write(folder: Path, content: dict[str, mx.array] | None = None, **config: Any) -> AdapterSource:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors() if content is None else content)
    full = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 4.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(full | config))
    return AdapterSource("mine", str(folder))


def refusal(source: AdapterSource) -> str:
    with pytest.raises(AdapterIncompatible) as refused:
        read(source)
    assert "mine" in refused.value.message
    assert source.path not in refused.value.message
    assert refused.value.param == "adapters"
    return refused.value.message


def test_pairs_come_with_the_scale_folded_in(tmp_path: Path) -> None:
    weights = read(write(tmp_path))
    pair = weights.layers[LAYER]
    assert (pair.a.shape, pair.b.shape, weights.nbytes) == ((8, 2), (2, 6), 4 * (16 + 12))
    assert mx.array_equal(pair.b, mx.full((2, 6), 2.0))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: mx.Dtype) -> None:
    values = mx.random.normal((8, 2)).astype(dtype)
    pair = read(write(tmp_path, tensors() | {f"{LAYER}.lora_a": values})).layers[LAYER]
    assert pair.a.dtype == mx.float32
    assert mx.array_equal(pair.a, values.astype(mx.float32))


def test_weights_read_on_one_thread_are_computed_with_on_another(tmp_path: Path) -> None:
    source = write(tmp_path)
    found: list[AdapterWeights] = []
    thread = threading.Thread(target=lambda: found.append(read(source)))
    thread.start()
    while thread.is_alive():
        # What the engine does meanwhile: neither may wait for the other.
        mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
    pair = found[0].layers[LAYER]
    assert (mx.ones((1, 8)) @ pair.a @ pair.b).tolist() == [[32.0] * 6]


def test_identity_is_that_of_the_contents(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    same = AdapterSource("other", str(shutil.copytree(tmp_path / "one", tmp_path / "same")))
    scaled = write(tmp_path / "scaled", lora_parameters={"scale": 1.0})
    reader = Adapters()
    assert reader.identity(one) == reader.identity(same) == read(one).identity
    assert reader.identity(scaled) != reader.identity(one)


def test_identity_follows_the_files(tmp_path: Path) -> None:
    reader = Adapters()
    source = write(tmp_path)
    before = reader.identity(source)
    assert reader.identity(source) == before
    write(tmp_path, tensors(rank=3))
    assert reader.identity(source) == read(source).identity != before


def test_fit_lists_every_offending_tensor() -> None:
    shapes = {LAYER: (8, 6), "b": (8, 6), "c": (8, 6), "d": (9, 6), "e": (8, 7)}
    layers = {path: Target("linear", *shape) for path, shape in shapes.items()}
    pair = LoraPair(mx.ones((8, 2)), mx.ones((2, 6)))
    weights = AdapterWeights("mine", "", dict.fromkeys(["b", "d", "e", "x"], pair), {}, 0)
    with pytest.raises(AdapterIncompatible) as refused:
        fit(weights, layers)
    lines = refused.value.message.splitlines()
    assert len(lines) == 4
    assert "d.lora_a: shape (8, 2), but the layer takes 9 inputs" in lines[1]
    assert "e.lora_b: shape (2, 6), but the layer has 7 outputs" in lines[2]
    assert "x.lora_a, x.lora_b: the model has no linear layer of that name" in lines[3]


def test_reader_checks_what_it_reads(tmp_path: Path) -> None:
    source = write(tmp_path)
    assert Adapters().read(source, TARGETS).layers[LAYER].a.shape == (8, 2)
    with pytest.raises(AdapterIncompatible, match="no linear layer"):
        Adapters().read(source, {})


@pytest.mark.parametrize("kind", ["dora", "full", "qlora", None])
def test_other_kinds_of_fine_tuning_are_refused_by_name(tmp_path: Path, kind: str | None) -> None:
    assert repr(kind) in refusal(write(tmp_path, fine_tune_type=kind))


def test_peft_folders_are_refused_as_such(tmp_path: Path) -> None:
    assert "PEFT" in refusal(write(tmp_path, peft_type="LORA"))
    (tmp_path / "adapters.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "PEFT" in refusal(AdapterSource("mine", str(tmp_path)))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    source = write(tmp_path)
    (tmp_path / name).unlink()
    assert name in refusal(source)
    with pytest.raises(AdapterIncompatible, match=name):
        Adapters().identity(source)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    source = write(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in refusal(source)


@pytest.mark.parametrize("parameters", [None, {}, {"scale": "2"}, {"scale": True}, {"scale": float("nan")}, [1]])
def test_scale_must_be_a_number(tmp_path: Path, parameters: Any) -> None:
    assert "lora_parameters.scale" in refusal(write(tmp_path, lora_parameters=parameters))


@pytest.mark.parametrize("keep", [0, 4, 60, -10])
def test_tensors_cut_short_are_refused(tmp_path: Path, keep: int) -> None:
    source = write(tmp_path)
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "cut short" in refusal(source)


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "no tensors" in refusal(write(tmp_path, {}))


def test_every_tensor_that_makes_no_pair_is_named(tmp_path: Path) -> None:
    odd = tensors() | {
        "alone.lora_a": mx.ones((8, 2)),
        "unchained.lora_a": mx.ones((8, 2)),
        "unchained.lora_b": mx.ones((3, 6)),
        "flat.lora_a": mx.ones((8,)),
        "whole.lora_a": mx.ones((8, 2), dtype=mx.int32),
        "layer.m": mx.ones((8,)),
        "lora_a": mx.ones((8, 2)),
    }
    message = refusal(write(tmp_path, odd))
    lines = message.splitlines()[1:]
    assert len(lines) == 6
    for name in ("alone.lora_a", "unchained.lora_a", "flat.lora_a", "whole.lora_a", "layer.m", "lora_a"):
        assert any(line.strip().startswith(name) for line in lines), name
    assert LAYER not in message
