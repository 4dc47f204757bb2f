"""Tiny random models, tokenizers and adapters, written to disk as mlx-lm writes them, and the engine driven by hand."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.embedding import Embedding
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, quantize_model, save_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_roster.core import (
    AdapterSource,
    Counters,
    Delta,
    Generation,
    Limits,
    Measured,
    ModelSource,
    Sampling,
    Text,
    Tokens,
)
from mlx_roster.engine.loop import Engine
from mlx_roster.engine.scheduler import Plan
from mlx_roster.engine.sequences import Token
from mlx_roster.errors import RosterError
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.tensors import Loaded

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "Übung macht den Meister, sagte der Bär",
    "hello world, hello you",
    "你好世界 🎉 naïve café",
]

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

#: What a family of mlx-lm's models wants beside `SIZES`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"rope_theta": 10000.0, "head_dim": 8},
    # Every second layer sees only so many tokens: fewer than most prompts have.
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "rope_theta": 10000.0,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 1,
        "conv_kernel": 4,
        "use_bias": True,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": "auto",
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "attention_bias": False,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "rope_theta": 10000.0,
        "attention_window_size": 8,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=template)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    bits: int | None = None,
    mode: str = "affine",
    embeddings: bool = True,
    dtype: mx.Dtype = mx.float32,
    **sizes: Any,
) -> Path:
    """A random model, its logits spread wide enough for rounding not to decide which is the largest.

    With `bits` it is quantized, in groups of 32 where `mode` leaves the choice; all but its `embeddings` if so said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    config = SIZES | FAMILIES.get(family, {}) | {"model_type": family, "vocab_size": len(tokenizer)}
    config |= {"eos_token_id": tokenizer.eos_token_id} | sizes
    module = import_module(f"mlx_lm.models.{family}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    if config["tie_word_embeddings"]:
        # Some families tie by the config, others where the weights have no head.
        model.pop("lm_head", None)
    model.load_weights([(name, _spread(name, value)) for name, value in _named(model)])
    model.set_dtype(dtype)
    if bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            group = {"nvfp4": 16}.get(mode, 32)
            some = None if embeddings else lambda _, layer: not isinstance(layer, Embedding)
            model, config = quantize_model(model, config, group_size=group, bits=bits, mode=mode, quant_predicate=some)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(_named(model)))
    save_config(config, folder / "config.json")
    return folder


def _named(model: Any) -> list[tuple[str, mx.array]]:
    named: Any = tree_flatten(model.parameters())
    return list(named)


def _spread(name: str, value: mx.array) -> mx.array:
    """Random weights instead of what a layer begins with, which for some is zeros.

    Large ones make logits that differ; but inside, and in recurrent gates above all, they make rounding grow as well.
    """
    if value.ndim == 1:
        return 0.5 * mx.random.normal(value.shape) if name.endswith(".bias") else value
    inputs = value.shape[-1] if value.shape[-1] > 1 else value.shape[-2]
    inside = ".layers." in name
    gain = 3.0 if not inside else 1.5 if value.ndim == 2 else 1.0
    spread: mx.array = mx.random.normal(value.shape) * (gain / inputs**0.5)
    return spread


def write_adapter(
    folder: Path,
    model: Path,
    *,
    seed: int,
    rank: int = 4,
    scale: float = 2.0,
    keys: Sequence[str] | None = None,
    layers: int = 2,
    dora: bool = False,
) -> Path:
    """An adapter over `model` as mlx-lm's trainer saves one, strong enough to change what is said.

    `keys` are paths within one of the model's blocks, and full paths of what is outside of them, as embeddings are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, _ = load_model(model)
    keys = list(keys or ["self_attn.q_proj", "self_attn.v_proj"])
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(base, layers, parameters, use_dora=dora)
    mx.random.seed(seed)
    tensors = {}
    for name, value in _named(base):
        if name.endswith(("lora_a", "lora_b")):
            tensors[name] = mx.random.normal(value.shape) * 0.3
        elif name.endswith(".m"):
            # What training leaves is near the base's norms, and never just these.
            tensors[name] = value * mx.random.uniform(0.5, 1.5, value.shape)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": layers,
        "lora_parameters": parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def overwrite_adapter(folder: Path, other: Path) -> None:
    """Put another adapter's files where this one's lie, each whole at any moment."""
    for name in ("adapter_config.json", "adapters.safetensors"):
        shutil.copy(other / name, folder / f".{name}")
        (folder / f".{name}").replace(folder / name)


def source(model: Path, max_adapters: int = 8, **limits: Any) -> ModelSource:
    return ModelSource("tiny", str(model), memory=2**30, limits=Limits(**limits), max_adapters=max_adapters)


def adapter(folder: Path) -> AdapterSource:
    return AdapterSource(name=folder.name, path=str(folder))


def request(
    prompt: str | Sequence[int] = "hello world",
    max_tokens: int = 12,
    *,
    stop: tuple[str, ...] = (),
    over: Path | None = None,
    **sampling: Any,
) -> Generation:
    """A greedy request, unless told otherwise."""
    return Generation(
        prompt=Text(prompt) if isinstance(prompt, str) else Tokens(list(prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(**({"temperature": 0.0} | sampling)),
        stop=stop,
        adapter=None if over is None else adapter(over),
    )


def words(seed: int, count: int) -> list[int]:
    """A prompt of so many tokens, another one for each seed."""
    return random.Random(seed).choices(range(10, 300), k=count)


class Recorder:
    """An engine's output, kept. Fails where a sequence says anything after its end."""

    def __init__(self) -> None:
        self.deltas: dict[int, list[Delta]] = {}
        self.errors: dict[int, RosterError] = {}
        self.reports: list[Measured] = []
        self.counters = Counters()
        self.frames: list[list[Delta]] = []

    def step(self, deltas: list[Delta]) -> None:
        self.frames.append(deltas)
        for delta in deltas:
            assert not self.ended(delta.sequence), delta
            self.deltas.setdefault(delta.sequence, []).append(delta)

    def rejected(self, sequence: int, error: RosterError) -> None:
        assert not self.ended(sequence), error
        self.errors[sequence] = error

    def report(self, measured: Measured) -> None:
        self.reports.append(measured)

    def counted(self, counters: Counters) -> None:
        self.counters = counters

    def ended(self, sequence: int) -> bool:
        said = self.deltas.get(sequence)
        return sequence in self.errors or bool(said and said[-1].finish)

    def text(self, sequence: int) -> str:
        return "".join(delta.text for delta in self.deltas[sequence])

    def last(self, sequence: int) -> Delta:
        return self.deltas[sequence][-1]


class Driven(Engine):
    """An engine turned by the test, on the test's thread."""

    def __init__(
        self, loaded: Loaded, source: ModelSource, reader: Adapters | None = None, said: Recorder | None = None
    ) -> None:
        self.said = said or Recorder()
        #: What the batch gave for each sequence, an end-of-sequence token included.
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.tokenizer = loaded.tokenizer
        self._numbers = 0
        super().__init__(loaded, source, self.said, reader or Adapters())

    def _step(self, plan: Plan) -> list[Token]:
        tokens = super()._step(plan)
        for token in tokens:
            self.tokens[token.sequence].append(token.id)
        return tokens

    def ask(self, generation: Generation) -> int:
        """Submit under the next number."""
        self._numbers += 1
        self.submit(self._numbers, generation)
        return self._numbers

    def until_ended(self, *sequences: int) -> None:
        while not all(self.said.ended(sequence) for sequence in sequences):
            self.turn()

    def until_tokens(self, sequence: int, count: int) -> None:
        while len(self.said.deltas.get(sequence, [])) < count:
            self.turn()

    def answer(self, generation: Generation) -> str:
        number = self.ask(generation)
        self.until_ended(number)
        if number in self.said.errors:
            raise self.said.errors[number]
        return self.said.text(number)

    def rest(self) -> None:
        """Turn until the engine has reported that it has nothing to do."""
        reports = len(self.said.reports)
        while len(self.said.reports) == reports:
            self.turn()


def driven(model: Path, said: Recorder | None = None, **limits: Any) -> Driven:
    where = source(model, **limits)
    return Driven(load(where, lambda done, total: None), where, said=said)


def alone(model: Path, over: Path | None = None) -> Any:
    """A model and one adapter as mlx-lm by itself puts them together."""
    base, _ = load_model(model)
    if over is not None:
        load_adapters(base, str(over))
    base.eval()
    return base


def greedy(base: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The tokens that mlx-lm by itself generates for one prompt, an end-of-sequence token included."""
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(list(prompt)), base, max_tokens=max_tokens):
        tokens.append(token)
        if token == 0:
            break
    return tokens


def solo(model: Path, prompt: Sequence[int], max_tokens: int, over: Path | None = None) -> list[int]:
    """The same of a model on disk, and one adapter."""
    return greedy(alone(model, over), prompt, max_tokens)


def spoken(engine: Driven, tokens: Sequence[int]) -> str:
    """The text that an engine must make of these tokens."""
    text: str = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    return text
