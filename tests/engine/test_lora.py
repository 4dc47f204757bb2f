"""Many adapters over one base, in one batch: each row as if its adapter were the only one."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_roster.core import Sampling
from mlx_roster.engine.lora import Bank
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.errors import AdapterIncompatible
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.loaders.sizes import adapter_sides, bank_bytes
from mlx_roster.tensors import AdapterWeights, LoraPair
from tests.engine import tiny
from tests.engine.tiny import Driven

PROMPTS = [[40 + 3 * row + 5 * column for column in range(3 + row % 6)] for row in range(17)]


@pytest.fixture(scope="session")
def expected(model: Path, adapters: list[Path]) -> list[list[int]]:
    """What mlx-lm says alone, with each adapter and, last, with none."""
    return [tiny.solo(model, prompt, 14, over) for prompt, over in zip(PROMPTS, [*adapters, None], strict=True)]


def says(engine: Driven, sequence: int, tokens: list[int]) -> None:
    assert engine.said.text(sequence) == tiny.spoken(engine, tokens)
    usage = engine.said.last(sequence).usage
    assert usage is not None
    assert usage.completion == len(tokens)


def test_adapters_do_change_what_is_said(expected: list[list[int]], model: Path) -> None:
    plain = [tiny.solo(model, prompt, 14) for prompt in PROMPTS[:16]]
    assert sum(tokens != alone for tokens, alone in zip(expected, plain, strict=False)) > 12


def test_mixed_batch_equals_solo_runs_token_for_token(
    engine: Driven, adapters: list[Path], expected: list[list[int]]
) -> None:
    over: list[Path | None] = [*adapters, None]
    sequences = [engine.ask(tiny.request(prompt, 14, over=one)) for prompt, one in zip(PROMPTS, over, strict=True)]
    engine.until_ended(*sequences)
    for sequence, tokens in zip(sequences, expected, strict=True):
        says(engine, sequence, tokens)
    assert max(len(frame) for frame in engine.said.frames) == 17


def test_mixed_batch_with_sequences_joining_and_leaving(
    engine: Driven, adapters: list[Path], expected: list[list[int]]
) -> None:
    over: list[Path | None] = [*adapters, None]
    order = list(range(17)) * 2
    random.Random(0).shuffle(order)
    asked: dict[int, int] = {}
    for index in order:
        asked[engine.ask(tiny.request(PROMPTS[index], 14, over=over[index]))] = index
        engine.turn()
    engine.until_ended(*asked)
    for sequence, index in asked.items():
        says(engine, sequence, expected[index])


def test_base_then_a_then_b_then_base_equals_fresh_runs(
    engine: Driven, adapters: list[Path], expected: list[list[int]]
) -> None:
    for index in (16, 2, 5, 16, 2):
        over = [*adapters, None][index]
        sequence = engine.ask(tiny.request(PROMPTS[index], 14, over=over))
        engine.until_ended(sequence)
        says(engine, sequence, expected[index])


def test_more_adapters_than_slots_take_turns(model: Path, adapters: list[Path], expected: list[list[int]]) -> None:
    with tiny.driven(model, max_adapters=2) as engine:
        sequences = [engine.ask(tiny.request(PROMPTS[index], 14, over=adapters[index])) for index in range(8)]
        engine.until_ended(*sequences)
        for sequence, tokens in zip(sequences, expected, strict=False):
            says(engine, sequence, tokens)


@pytest.mark.parametrize(
    ("family", "bits", "dtype"),
    [("qwen3", None, mx.float32), ("llama", 8, mx.float32), ("llama", None, mx.bfloat16), ("qwen3", 4, mx.bfloat16)],
)
def test_other_families_and_types_equal_solo_runs(
    tmp_path: Path, family: str, bits: int | None, dtype: mx.Dtype
) -> None:
    model = tiny.write_model(tmp_path / "model", family, bits=bits, dtype=dtype, hidden_size=64)
    over: list[Path | None] = [
        tiny.write_adapter(tmp_path / f"a{seed}", model, seed=seed, rank=4, keys=["self_attn.v_proj", "mlp.up_proj"])
        for seed in range(3)
    ]
    over.append(None)
    with tiny.driven(model) as engine:
        sequences = [engine.ask(tiny.request(PROMPTS[index], 10, over=one)) for index, one in enumerate(over)]
        engine.until_ended(*sequences)
        for index, sequence in enumerate(sequences):
            says(engine, sequence, tiny.solo(model, PROMPTS[index], 10, over[index]))


def test_adapter_saved_in_half_precision_is_served(tmp_path: Path, model: Path, engine: Driven) -> None:
    folder = tiny.write_adapter(tmp_path / "half", model, seed=3)
    tensors = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(tensors, dict)
    for dtype in (mx.bfloat16, mx.float16):
        halved = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        mx.save_safetensors(str(folder / "adapters.safetensors"), halved)
        sequence = engine.ask(tiny.request(PROMPTS[3], 14, over=folder))
        engine.until_ended(sequence)
        says(engine, sequence, tiny.solo(model, PROMPTS[3], 14, folder))


@pytest.mark.usefixtures("swept")
def test_resident_adapter_costs_its_bytes(model: Path, adapters: list[Path]) -> None:
    expected = bank_bytes([adapter_sides(folder) for folder in adapters], 16, None)
    with tiny.driven(model, max_adapters=16, prompt_cache_entries=0) as engine:
        engine.answer(tiny.request(PROMPTS[0], 4))
        engine.rest()
        base = engine.measured().active
        for folder in adapters:
            engine.answer(tiny.request(PROMPTS[0], 4, over=folder))
            # A buffer that mlx has used before may be somewhat larger than what it is used for next: toys would notice.
            engine.rest()
        # Were the last one's tensors, as they were read, still there, it would be a tenth more.
        assert engine.measured().active - base == pytest.approx(expected, rel=0.02)


def test_bank_leaves_the_base_as_it_was(model: Path, adapters: list[Path]) -> None:
    base = load(tiny.source(model), lambda done, total: None).model
    before = dict(tree_flatten(base.parameters()))
    bank = Bank(base, Routing(), 8)
    targets = dict(bank.targets)
    for slot, folder in enumerate(adapters[:3], 1):
        bank.put(slot, Adapters().read(tiny.adapter(folder), targets))
    assert bank.targets == targets
    after = {name.replace(".inner.", "."): array for name, array in tree_flatten(base.parameters())}
    for name, array in before.items():
        assert mx.array_equal(after[name], array)
    assert bank.nbytes > 0


def weights(layers: dict[str, LoraPair]) -> AdapterWeights:
    return AdapterWeights("odd", "odd", layers, {}, 0)


class Peeking(nn.Module):
    """A model that looks inside one of its linear layers, as some attentions do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]
        self.head = nn.Linear(8, 8)

    def __call__(self, inputs: mx.array, cache: list[object]) -> mx.array:
        x = mx.zeros((*inputs.shape, 8))
        x = x @ self.layers[0].weight
        y: mx.array = self.head(x)
        return y


def test_layer_that_the_model_looks_into_is_refused_and_the_model_unharmed() -> None:
    model = Peeking()
    routing = Routing()
    bank = Bank(model, routing, 8)
    pair = LoraPair(mx.zeros((8, 2)), mx.zeros((2, 8)))
    with pytest.raises(AdapterIncompatible, match=r"layers\.0"):
        bank.put(1, weights({"layers.0": pair}))
    assert isinstance(model.layers[0], nn.Linear)
    bank.put(1, weights({"head": pair}))
    assert Routed(model, routing)(mx.zeros((1, 1)), [Rows([Row(1, Sampling())])]).shape == (1, 1, 8)
