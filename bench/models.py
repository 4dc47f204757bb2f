"""What is served in the measurements: random models and adapters, made on the fly and the same on every run.

python -m bench.models FOLDER [--big]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: Keys of `llama.ModelArgs`: about 4.5 million and 200 million parameters, in float32, which CPUs multiply best.
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BIG = {
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
VOCABULARY = 2048
CONTEXT = 32768
ADAPTERS = 16
RANK = 8
#: The layers of each block that mlx-lm's LoRA changes if its config names none.
ALL_KEYS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
#: Much larger than a trained adapter's, so that each of them says something else than the base.
ADAPTER_STRENGTH = 0.05

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"
_CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class Models:
    """Where everything lies. A roster and a request name each by the name of its folder."""

    folder: Path

    @property
    def small(self) -> list[Path]:
        return [self.folder / "one", self.folder / "two"]

    @property
    def big(self) -> list[Path]:
        return [self.folder / "big-one", self.folder / "big-two"]

    @property
    def adapters(self) -> list[Path]:
        """Adapters of the first small model."""
        return [self.folder / f"adapter-{number:02}" for number in range(ADAPTERS)]


def words(seed: int) -> Iterator[str]:
    """Words of an invented language, without end."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    while True:
        yield draw.choice(lexicon)


def _tokenizer(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = words(0)
    lines = [" ".join(next(text) for _ in range(12)) + ".\n" for _ in range(4000)] + ["user\nassistant\nsystem\n"] * 100
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[_TURN_START, _TURN_END], initial_alphabet=[], show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {vocabulary}")
    tokenizer.save(str(folder / "tokenizer.json"))
    # No end-of-sequence token at all: mlx-lm would add it to those of the model's own config.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _CHATML, "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder: Path, seed: int, size: Mapping[str, int], vocabulary: int = VOCABULARY) -> None:
    """A random llama with a tokenizer of its own. `size` has keys of `llama.ModelArgs`."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    config: dict[str, Any] = {
        **size,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        # Nothing ends a generation but max_tokens.
        "eos_token_id": None,
    }
    folder.mkdir()
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    _tokenizer(folder, vocabulary)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))


@dataclass(frozen=True, slots=True)
class Lora:
    """What adapters over all blocks of one base look like. `shapes` are those of their tensors, by name."""

    keys: tuple[str, ...]
    rank: int
    layers: int
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def over(cls, base: Path, keys: Sequence[str], rank: int) -> Self:
        """As mlx-lm itself would train them over the model in `base`."""
        from mlx.utils import tree_flatten
        from mlx_lm import load
        from mlx_lm.tuner.utils import linear_to_lora_layers

        model = load(str(base))[0]
        layers = len(model.layers)
        linear_to_lora_layers(model, layers, {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": list(keys)})
        shapes = {
            name: tuple(value.shape)
            for name, value in dict(tree_flatten(model.parameters())).items()
            if name.endswith(("lora_a", "lora_b"))
        }
        return cls(tuple(keys), rank, layers, shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of one adapter's tensors, which are float32."""
        return sum(4 * rows * columns for rows, columns in self.shapes.values())

    def write(self, folder: Path, seed: int) -> None:
        """A random adapter, as mlx-lm writes them."""
        import mlx.core as mx

        mx.random.seed(seed)
        weights = {name: ADAPTER_STRENGTH * mx.random.normal(shape) for name, shape in self.shapes.items()}
        folder.mkdir(parents=True)
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
        config = {
            "fine_tune_type": "lora",
            "num_layers": self.layers,
            "lora_parameters": {"rank": self.rank, "scale": 1.0, "dropout": 0.0, "keys": list(self.keys)},
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))


def make(models: Models, *, big: bool) -> None:
    """Make what is missing."""
    models.folder.mkdir(parents=True, exist_ok=True)
    for seed, folder in enumerate(models.small):
        if not folder.exists():
            write_model(folder, seed, SMALL)
    lora: Lora | None = None
    for seed, folder in enumerate(models.adapters):
        if not folder.exists():
            lora = lora or Lora.over(models.small[0], ALL_KEYS, RANK)
            lora.write(folder, seed)
    for seed, folder in enumerate(models.big if big else []):
        if not folder.exists():
            write_model(folder, seed, BIG)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--big", action="store_true")
    arguments = parser.parse_args()
    make(Models(arguments.folder), big=arguments.big)
