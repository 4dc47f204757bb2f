"""Tiny random models, tokenizers and adapters, written to disk as mlx-lm writes them, and the engine driven by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import llama, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model, quantize_model, save_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_roster.core import AdapterSource, Delta, Generation, Measured, ModelSource, Sampling, Text, Tokens
from mlx_roster.engine.loop import Engine
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

FAMILIES: dict[str, Any] = {"llama": llama, "qwen3": qwen3}


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
    dtype: mx.Dtype = mx.float32,
    **sizes: Any,
) -> Path:
    """A random model, its logits spread wide enough for rounding not to decide which is the largest."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    config = SIZES | {"model_type": family, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if family == "qwen3":
        config |= {"rope_theta": 10000.0, "head_dim": 8}
    config |= sizes
    module = FAMILIES[family]
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.load_weights(
        [
            (name, 3 * mx.random.normal(value.shape) / value.shape[-1] ** 0.5 if value.ndim == 2 else value)
            for name, value in tree_flatten(model.parameters())
        ]
    )
    model.set_dtype(dtype)
    if bits is not None:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    save_config(config, folder / "config.json")
    return folder


def write_adapter(
    folder: Path,
    model: Path,
    *,
    seed: int,
    rank: int = 4,
    scale: float = 2.0,
    keys: Sequence[str] | None = None,
    layers: int = 2,
) -> Path:
    """An adapter over `model` as mlx-lm's trainer saves one, strong enough to change what is said."""
    folder.mkdir(parents=True, exist_ok=True)
    base, _ = load_model(model)
    keys = list(keys or ["self_attn.q_proj", "self_attn.v_proj"])
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(base, layers, parameters)
    mx.random.seed(seed)
    tensors = {
        name: mx.random.normal(value.shape) * 0.3
        for name, value in tree_flatten(base.parameters())
        if name.endswith(("lora_a", "lora_b"))
    }
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def source(model: Path, **limits: Any) -> ModelSource:
    return ModelSource(name="tiny", path=str(model), memory=2**30, **limits)


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


class Recorder:
    """An engine's output, kept. Fails where a sequence says anything after its end."""

    def __init__(self) -> None:
        self.deltas: dict[int, list[Delta]] = {}
        self.errors: dict[int, RosterError] = {}
        self.reports: list[Measured] = []
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

    def ended(self, sequence: int) -> bool:
        said = self.deltas.get(sequence)
        return sequence in self.errors or bool(said and said[-1].finish)

    def text(self, sequence: int) -> str:
        return "".join(delta.text for delta in self.deltas[sequence])

    def last(self, sequence: int) -> Delta:
        return self.deltas[sequence][-1]


class Driven(Engine):
    """An engine turned by the test, on the test's thread."""

    def __init__(self, loaded: Loaded, source: ModelSource, reader: Adapters | None = None) -> None:
        self.said = Recorder()
        self.tokenizer = loaded.tokenizer
        self._numbers = 0
        super().__init__(loaded, source, self.said, reader or Adapters())

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


def driven(model: Path, **limits: Any) -> Driven:
    where = source(model, **limits)
    return Driven(load(where, lambda done, total: None), where)


def solo(model: Path, prompt: Sequence[int], max_tokens: int, over: Path | None = None) -> list[int]:
    """The tokens that mlx-lm by itself generates greedily for one prompt, an end-of-sequence token included."""
    base, _ = load_model(model)
    if over is not None:
        load_adapters(base, str(over))
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), base, max_tokens=max_tokens):
        tokens.append(token)
        if token == 0:
            break
    return tokens


def spoken(engine: Driven, tokens: Sequence[int]) -> str:
    """The text that an engine must make of these tokens."""
    text: str = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    return text
