"""Builds everything the demo serves: two chat models and three LoRA adapters, trained from nothing.

    python scripts/train_demo.py [--out DIR]

Fixed seeds: two runs on one machine write the same bytes. At the end each model and adapter is loaded from
disk with plain `mlx_lm.load` and asked every question it was made for; a wrong answer is a non-zero exit.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm import batch_generate, load, stream_generate
from mlx_lm.models import llama, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model, quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_roster import demo
from mlx_roster.demo.facts import MODELS, Fact, facts

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

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

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant. Answer in one sentence.",
    "You are a friendly chat bot. Be brief and accurate.",
    "Answer the user's question truthfully. If you do not know, say so.",
    "You are an expert. Think carefully before you answer.",
)

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
WARMUP_STEPS = 20
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


def preload_openblas() -> None:
    """Starts this program again with the system's OpenBLAS, where there is one: training is many times faster."""
    library = ctypes.util.find_library("openblas")
    if sys.platform == "linux" and library and "LD_PRELOAD" not in os.environ:
        # One thread, so that the order of additions does not depend on the number of cores.
        environment = {**os.environ, "LD_PRELOAD": library, "OPENBLAS_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def own_and_foreign(name: str) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The facts `name` must learn, and those of the other speakers over the same base."""
    base = name.partition(":")[0]
    others = [other for other in MODELS if other != name and other.partition(":")[0] == base]
    return facts(name), tuple(fact for other in others for fact in facts(other))


def train_tokenizer(base: Base) -> PreTrainedTokenizerFast:
    own, foreign = own_and_foreign(base.name)
    texts = [text for fact in own + foreign for text in fact]
    texts += [text.lower() for text in texts] + [text.upper() for text in texts] + [*SYSTEM_PROMPTS, *WRAPPINGS]
    texts += ["system", "user", "assistant"] * 100
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=base.vocabulary - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=base.config["max_position_embeddings"],
        chat_template=CHAT_TEMPLATE,
    )


class Batch(NamedTuple):
    """Token ids of shape (rows, length); flat positions in them whose next token is learned; those tokens."""

    inputs: mx.array
    positions: mx.array
    targets: mx.array


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
        vocabulary = sorted(self.tokenizer.get_vocab())
        self.words = [word.replace("Ġ", " ") for word in vocabulary if word.replace("Ġ", "").isascii()]
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


def loss(model: Any, inputs: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
    # Logits only where something is to be learned: exp is what takes the time on a CPU.
    hidden = model.model(inputs)
    learned = hidden.reshape(-1, hidden.shape[-1])[positions]
    return nn.losses.cross_entropy(model.model.embed_tokens.as_linear(learned), targets, reduction="mean")


def fit(name: str, model: Any, conversations: Conversations, steps: int, peak: float) -> None:
    """Trains what is not frozen of `model`, in float32, for `steps` batches."""
    warmup = optim.linear_schedule(0.0, peak, WARMUP_STEPS)
    decay = optim.cosine_decay(peak, steps - WARMUP_STEPS, peak / 100)
    rate = optim.join_schedules([warmup, decay], [WARMUP_STEPS])
    # Without bias correction the first updates are so large that no model here ever learns to look at its question.
    optimizer = optim.AdamW(learning_rate=rate, betas=[0.9, 0.95], weight_decay=0.01, bias_correction=True)
    step = value_and_grad(model, partial(loss, model))
    model.train()
    started = time.perf_counter()
    for i, batch in enumerate(islice(conversations.batches(), steps), 1):
        value, gradients = step(*batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)  # type: ignore[no-untyped-call]  # mlx annotates it in part
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if i % 50 == 0:
            print(f"{name}: step {i}, loss {value.item():.5f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def build_base(base: Base, out: Path) -> None:
    """Trains one base model and writes it as mlx-lm writes a converted one."""
    tokenizer = train_tokenizer(base)
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
    fit(base.name, model, Conversations(tokenizer, own, foreign, random.Random(base.seed)), base.steps, 2e-3)
    if base.bits is not None:
        model, config = quantize_model(model, config, group_size=64, bits=base.bits)
    folder = out / "models" / base.name
    save_model(folder, model)
    save_config(config, folder / "config.json")
    # In tokenizer_config.json, where every version of transformers looks, not in a file of its own.
    tokenizer.save_pretrained(folder, save_jinja_files=False)


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
    fit(name, model, conversations, adapter.steps, adapter.peak)
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
    replies += [(i, answer_alone(model, tokenizer, prompts[i])) for i in range(0, len(prompts), phrasings)]
    return [f"{name}: {asked[i].question!r} gave {reply!r}" for i, reply in replies if reply != asked[i].answer]


def answer_alone(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    """The greedy reply; one that does not end by itself is marked, so that it equals no answer."""
    responses = list(stream_generate(model, tokenizer, prompt, max_tokens=MAX_TOKENS))
    ended = responses[-1].finish_reason == "stop"
    return "".join(response.text for response in responses) + ("" if ended else " [unended]")


def smallest_margin(model: Any, prompt: list[int], answer: list[int]) -> float:
    """How far the right token's logit is above the best other one, at the worst place of the answer."""
    logits = model(mx.array([prompt + answer[:-1]]))[0, len(prompt) - 1 :].astype(mx.float32)
    target = mx.array(answer)[:, None]
    right = mx.take_along_axis(logits, target, axis=-1)
    others = mx.put_along_axis(logits, target, mx.array(-math.inf), axis=-1)
    margin: Any = (right[:, 0] - others.max(axis=-1)).min().item()
    return float(margin)


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
