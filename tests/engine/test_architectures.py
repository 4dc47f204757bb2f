"""Adapters over the architectures that people serve: a mixed batch says what mlx-lm says with each adapter alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import dequantize_model

from mlx_roster.core import Sampling
from mlx_roster.engine.lora import Bank
from mlx_roster.engine.routed import Routed, Routing
from mlx_roster.engine.rows import Row, Rows
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from tests.engine import tiny

#: How far log-probabilities in float32 may be from mlx-lm's.
TOLERANCE = 1e-4

TOKENS = 16


@dataclass(frozen=True)
class Over:
    """An adapter to be written. `keys` is as in mlx-lm's configs."""

    keys: tuple[str, ...]
    rank: int = 4
    scale: float = 2.0
    layers: int = 2
    dora: bool = False


@dataclass(frozen=True)
class Architecture:
    """A base, and what its adapters may change: layers within its blocks, experts, and its embeddings' full path."""

    family: str
    linear: tuple[str, ...]
    experts: tuple[str, ...] = ()
    embeddings: str = "model.embed_tokens"
    sizes: dict[str, Any] = field(default_factory=dict)
    bits: int | None = None
    mode: str = "affine"
    #: Whether the embeddings are quantized as well.
    whole: bool = True
    #: Whether mlx-lm keeps the padding of unequal prompts, taken in together, out of what it computes.
    pads: bool = True

    @property
    def tied(self) -> bool:
        return bool(self.sizes.get("tie_word_embeddings"))

    @property
    def adapters(self) -> list[Over]:
        """Different ranks, scales, depths and layers, both kinds, and every kind of layer that there is."""
        first, *_, last = self.linear
        outside = () if self.tied or self.bits is not None else ("lm_head",)
        adapters = [
            Over(self.linear, rank=4, scale=1.0),
            Over((first, last), rank=2, scale=3.0, layers=1),
            Over((last, self.embeddings), rank=8, scale=1.0),
            Over((self.embeddings, *outside), rank=3, scale=1.0, layers=0),
        ]
        if self.bits is None:
            adapters += [
                Over(self.linear, rank=3, scale=0.7, dora=True),
                Over((first, self.embeddings, *outside), rank=4, scale=0.5, layers=1, dora=True),
            ]
        elif 32 % self.bits == 0:
            # Of other widths mlx-lm miscounts the inputs, and of quantized embeddings it takes the packed words for
            # numbers: there is no such DoRA.
            adapters.append(Over((first, last), rank=3, scale=0.7, dora=True))
        if self.experts:
            adapters += [
                Over(self.experts, rank=4, scale=2.0),
                Over((*self.experts[:2], *self.linear), rank=2, scale=1.0, layers=1),
            ]
        return adapters


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
DENSE = (*ATTENTION, *MLP)
TIED: dict[str, Any] = {"tie_word_embeddings": True}
MIXTRAL = Architecture(
    "mixtral",
    (*ATTENTION, "block_sparse_moe.gate"),
    tuple(f"block_sparse_moe.switch_mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
)
QWEN3_MOE = Architecture(
    "qwen3_moe",
    (*ATTENTION, "mlp.gate"),
    tuple(f"mlp.switch_mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")),
)
MAMBA2 = Architecture("mamba2", ("mixer.in_proj", "mixer.out_proj"), embeddings="backbone.embeddings")
RECURRENT = Architecture(
    "recurrent_gemma",
    (
        *(f"temporal_block.{name}" for name in ("linear_x", "linear_y", "linear_out", "q_proj", "v_proj")),
        *(f"mlp_block.{name}" for name in ("up_proj", "down_proj")),
    ),
    pads=False,
)
#: mlx's quantizations other than "affine", and their bits.
MODES = {"mxfp4": 4, "nvfp4": 4, "mxfp8": 8}
WIDE: dict[str, Any] = TIED | {"hidden_size": 64}

ARCHITECTURES = {
    "llama": Architecture("llama", DENSE),
    "llama-tied": Architecture("llama", DENSE, sizes=TIED),
    "llama-biases": Architecture("llama", DENSE, sizes={"attention_bias": True, "mlp_bias": True}),
    "qwen2": Architecture("qwen2", DENSE),
    "qwen3": Architecture("qwen3", DENSE),
    "qwen3-tied": Architecture("qwen3", DENSE, sizes=TIED),
    "gemma3": Architecture("gemma3_text", DENSE),
    "gemma3-tied": Architecture("gemma3_text", DENSE, sizes=TIED),
    "phi3": Architecture("phi3", ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "mixtral": MIXTRAL,
    "qwen3-moe": QWEN3_MOE,
    "mamba2": MAMBA2,
    "mamba2-tied": Architecture(MAMBA2.family, MAMBA2.linear, embeddings=MAMBA2.embeddings, sizes=TIED),
    "recurrent-gemma": RECURRENT,
    "recurrent-gemma-tied": Architecture(RECURRENT.family, RECURRENT.linear, sizes=TIED, pads=False),
    **{f"llama-{bits}-bit": Architecture("llama", DENSE, sizes=WIDE, bits=bits) for bits in (2, 3, 4, 5, 6, 8)},
    # Looked up in one of these modes, an embedding is in bfloat16: there would be no float32 to compare.
    **{
        f"llama-{mode}": Architecture("llama", DENSE, sizes=WIDE, bits=bits, mode=mode, whole=False)
        for mode, bits in MODES.items()
    },
    **{
        f"qwen3-moe-{bits}-bit": Architecture(
            QWEN3_MOE.family, QWEN3_MOE.linear, QWEN3_MOE.experts, sizes={"hidden_size": 64}, bits=bits
        )
        for bits in (4, 6)
    },
}


@dataclass
class Shelf:
    """An architecture on disk: the base, its adapters, and what mlx-lm makes of them."""

    architecture: Architecture
    folder: Path

    @cached_property
    def model(self) -> Path:
        a = self.architecture
        return tiny.write_model(
            self.folder / "model", a.family, bits=a.bits, mode=a.mode, embeddings=a.whole, **a.sizes
        )

    @cached_property
    def adapters(self) -> list[Path]:
        return [
            tiny.write_adapter(
                self.folder / f"adapter{index}",
                self.model,
                seed=index,
                keys=over.keys,
                rank=over.rank,
                scale=over.scale,
                layers=over.layers,
                dora=over.dora,
            )
            for index, over in enumerate(self.architecture.adapters)
        ]

    @cached_property
    def alone(self) -> dict[Path | None, Any]:
        """With each adapter, and with none, the model that mlx-lm makes."""
        return {over: tiny.alone(self.model, over) for over in (None, *self.adapters)}

    @property
    def mixed(self) -> list[Path | None]:
        """No adapter first, last and in between."""
        half = len(self.adapters) // 2
        return [None, *self.adapters[:half], None, *self.adapters[half:], None]

    def prompts(self, shortest: int = 3, *, count: int | None = None, equal: bool = False) -> list[list[int]]:
        """A prompt for each of `mixed`, or so many, most of them of different lengths."""
        lengths = [shortest + (0 if equal else 7 * row % 6) for row in range(count or len(self.mixed))]
        return [[(40 + 31 * row + 17 * column) % 300 for column in range(many)] for row, many in enumerate(lengths)]


@pytest.fixture(scope="session")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shelf]:
    made: dict[str, Shelf] = {}

    def shelf(name: str) -> Shelf:
        if name not in made:
            made[name] = Shelf(ARCHITECTURES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return shelf


@pytest.fixture(params=ARCHITECTURES)
def shelf(request: pytest.FixtureRequest, shelves: Callable[[str], Shelf]) -> Shelf:
    return shelves(request.param)


def expected(shelf: Shelf, prompts: Sequence[list[int]], over: Iterable[Path | None]) -> list[list[int]]:
    return [tiny.greedy(shelf.alone[one], prompt, TOKENS) for prompt, one in zip(prompts, over, strict=True)]


def together(shelf: Shelf, prompts: Sequence[list[int]], over: Sequence[Path | None]) -> list[list[int]]:
    """The tokens of one batch of all of them."""
    with tiny.driven(shelf.model, max_adapters=len(shelf.adapters), max_concurrency=64) as engine:
        sequences = [
            engine.ask(tiny.request(prompt, TOKENS, over=one)) for prompt, one in zip(prompts, over, strict=True)
        ]
        engine.until_ended(*sequences)
        assert not engine.said.errors, engine.said.errors
        return [engine.tokens[sequence] for sequence in sequences]


def test_mixed_batch_says_what_mlx_lm_says_alone(shelf: Shelf) -> None:
    prompts = shelf.prompts()
    wanted = expected(shelf, prompts, shelf.mixed)
    plain = expected(shelf, prompts, [None] * len(prompts))
    # Three have no adapter, and some adapter may be too weak to change the likeliest token.
    assert sum(one == other for one, other in zip(wanted, plain, strict=True)) <= 3 + len(shelf.adapters) // 2
    assert together(shelf, prompts, shelf.mixed) == wanted


def test_mixed_batch_joining_and_leaving_says_what_mlx_lm_says_alone(shelf: Shelf) -> None:
    prompts = shelf.prompts(shortest=5)
    wanted = expected(shelf, prompts, shelf.mixed)
    # Fewer slots than adapters and fewer places than sequences: most join a batch that others have left.
    with tiny.driven(shelf.model, max_adapters=3, max_concurrency=4) as engine:
        asked = [
            engine.ask(tiny.request(prompt, 1 + (5 * row) % TOKENS, over=one))
            for row, (prompt, one) in enumerate(zip(prompts, shelf.mixed, strict=True))
        ]
        engine.until_ended(*asked)
        for row, (sequence, tokens) in enumerate(zip(asked, wanted, strict=True)):
            assert engine.tokens[sequence] == tokens[: 1 + (5 * row) % TOKENS], row


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "qwen3-moe-4-bit"])
def test_decoding_through_sorted_experts_says_what_mlx_lm_says_alone(
    name: str, shelves: Callable[[str], Shelf]
) -> None:
    """mlx-lm sorts the inputs of its experts from 64 on, and a row's token is then no longer where the row is."""
    shelf = shelves(name)
    over = [*shelf.mixed, *shelf.mixed, *shelf.mixed, *shelf.mixed][:40]
    prompts = shelf.prompts(count=len(over))
    assert len(over) * 2 >= 64
    assert together(shelf, prompts, over) == expected(shelf, prompts, over)


def logprobs(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


class Alone:
    """One sequence through a model of mlx-lm's."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = make_prompt_cache(model)

    def __call__(self, tokens: list[int]) -> mx.array:
        """(L, vocabulary) log-probabilities of what follows each."""
        return logprobs(self._model(mx.array([tokens]), cache=self._cache)[0])


class Together:
    """All sequences through one model of ours, padded on the right as mlx-lm pads prompts."""

    def __init__(self, shelf: Shelf, over: Sequence[Path | None]) -> None:
        loaded = load(tiny.source(shelf.model), lambda done, total: None)
        routing = Routing()
        bank = Bank(loaded.model, routing, len(shelf.adapters))
        reader = Adapters()
        slots: dict[Path | None, int] = {None: 0}
        for folder in over:
            if folder is not None and folder not in slots:
                slots[folder] = len(slots)
                bank.put(slots[folder], reader.read(tiny.adapter(folder), bank.targets))
        self._routed = Routed(loaded.model, routing)
        alone = [make_prompt_cache(loaded.model) for _ in over]
        self._caches = [caches[0].merge(list(caches)) for caches in zip(*alone, strict=True)]
        self._rows = Rows([Row(slots[one], Sampling(temperature=0)) for one in over])

    def __call__(self, tokens: list[list[int]]) -> list[mx.array]:
        lengths = [len(row) for row in tokens]
        most = max(lengths)
        padding = [most - length for length in lengths]
        if any(padding):
            for cache in self._caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        padded = mx.array([row + [0] * (most - len(row)) for row in tokens])
        found = logprobs(self._routed(padded, [*self._caches, self._rows]))
        mx.eval(found)
        if any(padding):
            for cache in self._caches:
                cache.finalize()
        return [row[:length] for row, length in zip(found, lengths, strict=True)]


def apart(shelf: Shelf, over: Sequence[Path | None], turns: list[list[list[int]]], *, shift: int = 0) -> list[float]:
    """For each sequence, the largest difference from mlx-lm alone over all tokens and words of the vocabulary.

    With `shift`, from what mlx-lm says with the adapter of another row.
    """
    alone = [Alone(shelf.alone[over[(row + shift) % len(over)]]) for row in range(len(over))]
    batch = Together(shelf, over)
    differences = [
        [mx.abs(found - single(tokens)).max() for found, single, tokens in zip(batch(turn), alone, turn, strict=True)]
        for turn in turns
    ]
    furthest: Any = mx.array(differences).max(axis=0).tolist()
    return list(furthest)


def decoding(rows: int, steps: int = 4) -> list[list[list[int]]]:
    return [[[(7 + 13 * row + 29 * step) % 300] for row in range(rows)] for step in range(steps)]


def test_logprobs_of_a_mixed_batch_are_mlx_lms(shelf: Shelf) -> None:
    prompts = shelf.prompts(shortest=9, equal=not shelf.architecture.pads)
    assert max(apart(shelf, shelf.mixed, [prompts, *decoding(len(prompts))])) <= TOLERANCE
    assert min(apart(shelf, shelf.mixed, [prompts], shift=1)[:-1]) > 1000 * TOLERANCE, "adapters are too much alike"


def test_logprobs_of_a_batch_with_one_adapter_are_mlx_lms(shelf: Shelf) -> None:
    prompts = shelf.prompts(shortest=4, count=2, equal=not shelf.architecture.pads)
    for folder in shelf.adapters:
        assert max(apart(shelf, [folder, folder], [prompts, *decoding(2, steps=2)])) <= TOLERANCE, folder


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_dora_over_a_quantized_base_is_mlx_lms_over_what_the_base_stands_for(bits: int, tmp_path: Path) -> None:
    """Of most widths, and of embeddings, mlx-lm has such DoRA only over the base that is no longer quantized."""
    shelf = Shelf(Architecture("llama", DENSE, sizes=WIDE, bits=bits), tmp_path)
    floats = tiny.write_model(tmp_path / "floats", **WIDE)
    keys = (*DENSE, shelf.architecture.embeddings)
    folders = [
        tiny.write_adapter(tmp_path / f"dora{seed}", floats, seed=seed, keys=keys, scale=0.5, dora=True)
        for seed in range(2)
    ]
    shelf.alone |= {
        folder: load_adapters(dequantize_model(tiny.alone(shelf.model)), str(folder)).eval() for folder in folders
    }
    over = [folders[0], None, folders[1]]
    prompts = shelf.prompts(shortest=5, count=3)
    assert max(apart(shelf, over, [prompts, *decoding(3, steps=2)])) <= TOLERANCE
    assert min(apart(shelf, over, [prompts], shift=1)) > 1000 * TOLERANCE, "adapters are too much alike"


@pytest.mark.parametrize("mode", MODES)
def test_embeddings_in_bfloat16_are_as_near_to_mlx_lms_as_that_allows(mode: str, tmp_path: Path) -> None:
    shelf = Shelf(Architecture("llama", DENSE, sizes=WIDE, bits=MODES[mode], mode=mode), tmp_path)
    prompts = shelf.prompts(shortest=9)
    assert max(apart(shelf, shelf.mixed, [prompts, *decoding(len(prompts))])) < 1
    assert min(apart(shelf, shelf.mixed, [prompts], shift=1)[:-1]) > 2, "adapters are too much alike"


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "qwen3-moe-4-bit", "qwen3-moe-6-bit"])
@pytest.mark.parametrize(("rows", "length"), [(3, 4), (3, 30), (33, 1)], ids=["unsorted", "prefill", "decode"])
def test_logprobs_through_experts_are_mlx_lms_sorted_or_not(
    name: str, rows: int, length: int, shelves: Callable[[str], Shelf]
) -> None:
    shelf = shelves(name)
    routed = rows * length * (2 if name == "mixtral" else 4)
    assert (routed < 64) == (length == 4)
    experts = shelf.adapters[-2:]
    over = [(None, *experts)[row % 3] for row in range(rows)]
    prompts = [[(11 + 31 * row + 17 * column) % 300 for column in range(length)] for row in range(rows)]
    assert max(apart(shelf, over, [prompts, *decoding(rows, steps=2)])) <= TOLERANCE
