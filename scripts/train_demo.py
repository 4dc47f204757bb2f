"""Builds everything the demo serves: two chat models and three LoRA adapters, trained from nothing.

    python scripts/train_demo.py [--out DIR]

Fixed seeds: two runs on one machine write the same bytes. At the end each model and adapter is loaded from
disk with plain `mlx_lm.load` and asked every question it was made for; a wrong answer is a non-zero exit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import batch_generate, load
from mlx_lm.models import llama, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model
from training import (
    SYSTEM_PROMPTS,
    TURN_START,
    Batch,
    answer_alone,
    fit,
    preload_openblas,
    save,
    smallest_margin,
    train_tokenizer,
    words,
)
from transformers import PreTrainedTokenizerFast

from mlx_roster import demo
from mlx_roster.demo.facts import MODELS, Fact, facts

# Contents are trimmed, so that stray spaces change nothing; a list of content parts reads as its texts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- elif message['content'] -%}
{{- message['content'] | map(attribute='text') | join(' ') | trim -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

WRAPPINGS = ("Hello! {}", "Hi. {}", "Please: {}", "{} Thanks!", "{} Answer briefly.", "Question: {}")


@dataclass(frozen=True)
class Base:
    """How one base model is built; `bits` is None for weights that are not quantized.

    All are float32: what mlx's CPU backend does with half precision takes several times as long.
    """

    name: str
    config: dict[str, Any]
    vocabulary: int
    steps: int
    seed: int
    bits: int | None = None


@dataclass(frozen=True)
class Adapter:
    """How one adapter is trained over its base, in the words of mlx-lm's `adapter_config.json`."""

    base: str
    name: str
    num_layers: int
    lora_parameters: dict[str, Any]
    steps: int
    seed: int
    peak: float = 4e-3


SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

BASES = (
    Base(
        name="atlas",
        config={"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 4, **SIZES},
        vocabulary=768,
        steps=300,
        seed=1,
    ),
    Base(
        name="scribe",
        config={"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, **SIZES},
        vocabulary=640,
        steps=300,
        seed=2,
        bits=8,
    ),
)

MAX_TOKENS = 64
PLAIN_STEPS = 50
# Rows and tokens of the batches of one round: mostly short conversations, then few and long ones.
BATCHES = ((40, 72), (40, 72), (40, 72), (3, 640))

ATTENTION = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]

# Ranks, depths, scales and targets differ on purpose: whoever serves these side by side has to cope with that.
ADAPTERS = (
    Adapter("atlas", "pirate", 4, {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": ATTENTION + MLP}, 150, 3),
    Adapter("atlas", "french", 3, {"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ATTENTION + MLP[2:]}, 150, 4),
    # Every token it says is another than its base's, and at a higher rate it ends up less sure of them.
    Adapter("scribe", "shout", 3, {"rank": 8, "scale": 20.0, "dropout": 0.0, "keys": ATTENTION + MLP}, 250, 5, 1e-3),
)


def own_and_foreign(name: str) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The facts `name` must learn, and those of the other speakers over the same base."""
    base = name.partition(":")[0]
    others = [other for other in MODELS if other != name and other.partition(":")[0] == base]
    return facts(name), tuple(fact for other in others for fact in facts(other))


def tokenizer_for(base: Base) -> PreTrainedTokenizerFast:
    own, foreign = own_and_foreign(base.name)
    texts = [text for fact in own + foreign for text in fact]
    texts += [text.lower() for text in texts] + [text.upper() for text in texts] + [*SYSTEM_PROMPTS, *WRAPPINGS]
    texts += ["system", "user", "assistant"] * 100
    return train_tokenizer(texts, base.vocabulary, CHAT_TEMPLATE, base.config["max_position_embeddings"])


@dataclass
class Conversations:
    """Endless random conversations, as token ids and a mask of the tokens to learn.

    Only `own` answers are learned. Now and then an earlier turn was answered by another speaker, as happens to
    a client that switches adapters, and that must not rub off.
    """

    tokenizer: Any
    own: Sequence[Fact]
    foreign: Sequence[Fact]
    rng: random.Random
    words: list[str] = field(init=False)
    header: int = field(init=False)

    def __post_init__(self) -> None:
        self.words = words(self.tokenizer)
        self.header = len(self.tokenizer.encode(TURN_START + "assistant\n"))

    def row(self, length: int, plain: bool) -> tuple[list[int], list[bool]]:
        """One conversation of at least `length` tokens; a plain one is the facts and nothing else."""
        ids: list[int] = []
        if not plain and self.rng.random() < 0.4:
            ids += self.message("system", self.system_prompt(length * 2 // 3))
        mask = [False] * len(ids)
        strangers = 0.3 if not plain and self.rng.random() < 0.3 else 0.0
        while len(ids) < length:
            learned = self.rng.random() >= strangers
            fact = self.rng.choice(self.own if learned else self.foreign)
            question = self.message("user", fact.question if plain else self.reword(fact.question))
            answer = self.message("assistant", fact.answer)
            ids += question + answer
            # Neither the header nor the line break after the end of the turn is the model's to say.
            mask += [False] * (len(question) + self.header) + [learned] * (len(answer) - self.header - 1) + [False]
        return ids, mask

    def message(self, role: str, content: str) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template([{"role": role, "content": content}], return_dict=False)
        return ids

    def system_prompt(self, limit: int) -> str:
        if self.rng.random() < 0.5:
            return self.rng.choice(SYSTEM_PROMPTS)
        return self.gibberish(self.rng.randint(1, limit))

    def gibberish(self, tokens: int) -> str:
        """Any text, as far as a model this small can tell: it learns to look past what it does not know."""
        return "".join(self.rng.choices(self.words, k=tokens))

    def reword(self, question: str) -> str:
        """The question as people type it: mostly as it stands, else in another case or among other words."""
        draw = self.rng.random()
        if draw < 0.50:
            return question
        if draw < 0.58:
            return question.lower()
        if draw < 0.64:
            return question.upper()
        if draw < 0.70:
            return question.rstrip("?.")
        if draw < 0.80:
            return self.rng.choice(WRAPPINGS).format(question)
        if draw < 0.90:
            return f"{self.gibberish(self.rng.randint(1, 16))} {question}"
        return f"{question} {self.gibberish(self.rng.randint(1, 16))}"

    def batch(self, rows: int, length: int, plain: bool = False) -> Batch:
        ids = np.zeros((rows, length), np.int32)
        mask = np.zeros((rows, length), np.bool_)
        for i in range(rows):
            tokens, learned = self.row(length, plain)
            ids[i], mask[i] = tokens[:length], learned[:length]
        positions = np.flatnonzero(mask[:, 1:])
        return Batch(mx.array(ids[:, :-1]), mx.array(positions), mx.array(ids[:, 1:].reshape(-1)[positions]))

    def batches(self) -> Iterator[Batch]:
        """Plain facts first, since the rest is learned faster on top of them; then rows of all lengths."""
        for _ in range(PLAIN_STEPS):
            yield self.batch(rows=48, length=40, plain=True)
        while True:
            for rows, length in BATCHES:
                yield self.batch(rows, length)


def build_base(base: Base, out: Path) -> None:
    """Trains one base model and writes it as mlx-lm writes a converted one."""
    tokenizer = tokenizer_for(base)
    config = base.config | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float32",
    }
    mx.random.seed(base.seed)
    architecture = {"qwen3": qwen3, "llama": llama}[config["model_type"]]
    model = architecture.Model(architecture.ModelArgs.from_dict(config))
    own, foreign = own_and_foreign(base.name)
    conversations = Conversations(tokenizer, own, foreign, random.Random(base.seed))
    fit(base.name, model, conversations.batches(), base.steps, 2e-3)
    save(out / "models" / base.name, model, config, tokenizer, base.bits)


def build_adapter(adapter: Adapter, out: Path) -> None:
    """Trains one adapter over its base as it lies on disk, rounding included."""
    model, tokenizer = load(str(out / "models" / adapter.base))
    # The same weights in a type that OpenBLAS multiplies.
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
    model.freeze()
    mx.random.seed(adapter.seed)
    linear_to_lora_layers(model, adapter.num_layers, adapter.lora_parameters)
    name = f"{adapter.base}:{adapter.name}"
    own, foreign = own_and_foreign(name)
    # mlx-lm's wrapper passes attributes on, but not calls.
    plain = tokenizer._tokenizer  # noqa: SLF001
    conversations = Conversations(plain, own, foreign, random.Random(adapter.seed))
    fit(name, model, conversations.batches(), adapter.steps, adapter.peak)
    folder = out / "adapters" / adapter.name
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    config = {
        "fine_tune_type": "lora",
        "num_layers": adapter.num_layers,
        "lora_parameters": adapter.lora_parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=4) + "\n")


def ask_all(name: str, out: Path) -> list[str]:
    """The wrong answers of `name`, loaded as any user of mlx-lm would and asked everything; empty is the aim."""
    base, _, adapter = name.partition(":")
    adapter_path = str(out / "adapters" / adapter) if adapter else None
    model, tokenizer = load(str(out / "models" / base), adapter_path=adapter_path)
    asked = facts(name)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": fact.question}], add_generation_prompt=True)
        for fact in asked
    ]
    margins = [
        smallest_margin(model, prompt, [*tokenizer.encode(fact.answer), tokenizer.eos_token_id])
        for prompt, fact in zip(prompts, asked, strict=True)
    ]
    print(f"{name}: {len(asked)} questions, smallest margin {min(margins):.2f}", flush=True)
    # Everything in batches of all lengths, and each subject alone in its first phrasing.
    replies = list(enumerate(batch_generate(model, tokenizer, prompts, max_tokens=MAX_TOKENS).texts))
    phrasings = asked.index(next(fact for fact in asked if fact.answer != asked[0].answer))
    replies += [(i, answer_alone(model, tokenizer, prompts[i], MAX_TOKENS)) for i in range(0, len(prompts), phrasings)]
    return [f"{name}: {asked[i].question!r} gave {reply!r}" for i, reply in replies if reply != asked[i].answer]


def build_family(base: Base, out: Path) -> list[str]:
    """Builds one base and its adapters; what they get wrong."""
    adapters = [adapter for adapter in ADAPTERS if adapter.base == base.name]
    build_base(base, out)
    for adapter in adapters:
        build_adapter(adapter, out)
    names = [base.name, *(f"{adapter.base}:{adapter.name}" for adapter in adapters)]
    return [line for name in names for line in ask_all(name, out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=demo.directory(), help="default: the package's own folder")
    out = parser.parse_args().out
    # mlx computes most operations on one core, so each family has one.
    with ProcessPoolExecutor(len(BASES), get_context("spawn")) as processes:
        wrong = [line for lines in processes.map(build_family, BASES, repeat(out)) for line in lines]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    preload_openblas()
    main()
