"""What is estimated from adapters' headers, held to what a bank takes that has them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_roster.engine.lora import Bank
from mlx_roster.engine.routed import Routing
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.loaders.sizes import estimate
from tests.engine import tiny
from tests.loaders.adapter_folders import lora, write_peft
from tests.loaders.test_sizes import entry

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def taken(model: Path, adapters: Sequence[Path], slots: int = 8) -> int:
    """The bytes of a bank through which all of these have gone, each into the next slot and then round again."""
    bank = Bank(load(tiny.source(model), lambda done, total: None).model, Routing(), slots)
    for number, folder in enumerate(adapters):
        bank.put(number % slots + 1, Adapters().read(tiny.adapter(folder), bank.targets))
    return bank.nbytes


def expected(model: Path, adapters: Sequence[Path], slots: int = 8) -> int:
    return estimate(model, entry(model, adapters, max_adapters=slots), 0.0).bank


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("slots", [1, 3, 7, 8, 16])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_adapters_on_different_modules(model: Path, count: int, slots: int, tmp_path: Path) -> None:
    adapters = [
        tiny.write_adapter(tmp_path / key, model, seed=seed, rank=2 + seed, keys=[key], layers=1 + seed % 2)
        for seed, key in enumerate(MODULES[:count])
    ]
    assert expected(model, adapters, slots) == taken(model, adapters, slots) > 0


def test_adapters_of_different_ranks_on_overlapping_modules(model: Path, tmp_path: Path) -> None:
    adapters = [
        tiny.write_adapter(tmp_path / str(rank), model, seed=rank, rank=rank, keys=keys)
        for rank, keys in ((2, MODULES), (16, MODULES[1:3]), (8, MODULES[2:5]))
    ]
    assert expected(model, adapters) == taken(model, adapters)


def test_adapters_in_half_precision(model: Path, tmp_path: Path) -> None:
    folder = tiny.write_adapter(tmp_path, model, seed=1)
    tensors = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(tensors, dict)
    halved = {name: tensor.astype(mx.bfloat16) for name, tensor in tensors.items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), halved)
    assert expected(model, [folder]) == taken(model, [folder])


def test_dora_and_embeddings(model: Path, tmp_path: Path) -> None:
    dora = tiny.write_adapter(tmp_path / "dora", model, seed=1, rank=8, keys=MODULES, dora=True)
    embedding = tiny.write_adapter(tmp_path / "words", model, seed=2, rank=8, keys=["model.embed_tokens", "lm_head"])
    for adapters in ([dora], [embedding], [dora, embedding]):
        assert expected(model, adapters) == pytest.approx(taken(model, adapters), rel=0.1)


def test_both_formats_over_one_base(model: Path, tmp_path: Path) -> None:
    ours = tiny.write_adapter(tmp_path / "ours", model, seed=1, rank=4, keys=["mlp.up_proj"])
    theirs = write_peft(tmp_path / "theirs", lora("model.layers.1.mlp.up_proj", 8, 32, 64), r=8)
    adapters = [ours, Path(theirs.path)]
    assert expected(model, adapters) == taken(model, adapters)


@pytest.mark.parametrize(
    ("family", "stack", "expert"),
    [
        ("mixtral", "block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.experts.2.w3"),
        ("qwen3_moe", "mlp.switch_mlp.up_proj", "mlp.experts.2.up_proj"),
    ],
)
def test_experts(family: str, stack: str, expert: str, tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", family)
    ours = tiny.write_adapter(tmp_path / "ours", model, seed=1, rank=2, keys=[stack])
    outputs = 64 if family == "mixtral" else 32
    theirs = Path(write_peft(tmp_path / "theirs", lora(f"model.layers.0.{expert}", 4, 32, outputs), r=4).path)
    for adapters in ([ours], [theirs], [ours, theirs], [theirs, ours]):
        assert expected(model, adapters) == taken(model, adapters) > 0


def test_an_engine_says_how_far_its_bank_may_still_grow(model: Path, tmp_path: Path) -> None:
    adapters = [
        tiny.write_adapter(tmp_path / str(seed), model, seed=seed, keys=[key]) for seed, key in enumerate(ATTENTION[:3])
    ]
    whole = expected(model, adapters)
    gc.collect()  # what earlier tests have left is not to be freed in the middle
    with tiny.driven(model, bank=whole) as engine:
        assert engine.measured().growth == whole
        growths = []
        for folder in adapters:
            engine.answer(tiny.request("hello", 2, over=folder))
            # What has been read, and the last step, may still be on their way out.
            engine.rest()
            mx.synchronize()
            growths.append(engine.measured().growth)
        assert whole > growths[0] > growths[1] > growths[2] == 0
        assert engine.said.reports[-1].growth == 0


def test_a_bank_that_is_larger_than_expected_has_nothing_left_to_grow(model: Path, tmp_path: Path) -> None:
    folder = tiny.write_adapter(tmp_path, model, seed=1)
    with tiny.driven(model, bank=1) as engine:
        engine.answer(tiny.request("hello", 2, over=folder))
        assert engine.measured().growth == 0
