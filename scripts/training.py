"""What the scripts that train models have in common: tokenizers, the training loop, and asking what was learned."""

from __future__ import annotations

import ctypes.util
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.nn.utils import value_and_grad
from mlx_lm import stream_generate
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant. Answer in one sentence.",
    "You are a friendly chat bot. Be brief and accurate.",
    "Answer the user's question truthfully. If you do not know, say so.",
    "You are an expert. Think carefully before you answer.",
)

WARMUP_STEPS = 20


def preload_openblas() -> None:
    """Starts this program again with the system's OpenBLAS, where there is one: training is many times faster."""
    library = ctypes.util.find_library("openblas")
    if sys.platform == "linux" and library and "LD_PRELOAD" not in os.environ:
        # One thread, so that the order of additions does not depend on the number of cores.
        environment = {**os.environ, "LD_PRELOAD": library, "OPENBLAS_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def train_tokenizer(
    texts: Iterable[str],
    vocabulary: int,
    template: str,
    context: int,
    markers: Sequence[str] = (),
    pieces: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens of ChatML. `markers` are single tokens too, and are seen in the text.

    No token is longer than what the regular expression `pieces` matches, or that of GPT-2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pieces is not None:
        split = pre_tokenizers.Split(Regex(pieces), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(specials) - len(markers),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        chat_template=template,
    )


def words(tokenizer: Any) -> list[str]:
    """The tokens of plain text, as text."""
    vocabulary = sorted(tokenizer.get_vocab())
    return [word.replace("Ġ", " ") for word in vocabulary if word.replace("Ġ", "").isascii()]


class Batch(NamedTuple):
    """Token ids of shape (rows, length); flat positions in them whose next token is learned; those tokens."""

    inputs: mx.array
    positions: mx.array
    targets: mx.array


def loss(model: Any, inputs: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
    # Logits only where something is to be learned: exp is what takes the time on a CPU.
    hidden = model.model(inputs)
    learned = hidden.reshape(-1, hidden.shape[-1])[positions]
    return nn.losses.cross_entropy(model.model.embed_tokens.as_linear(learned), targets, reduction="mean")


def fit(name: str, model: Any, batches: Iterable[Batch], steps: int, peak: float) -> None:
    """Trains what is not frozen of `model`, in float32, for `steps` of `batches`."""
    warmup = optim.linear_schedule(0.0, peak, WARMUP_STEPS)
    decay = optim.cosine_decay(peak, steps - WARMUP_STEPS, peak / 100)
    rate = optim.join_schedules([warmup, decay], [WARMUP_STEPS])
    # Without bias correction the first updates are so large that no model here ever learns to look at its question.
    optimizer = optim.AdamW(learning_rate=rate, betas=[0.9, 0.95], weight_decay=0.01, bias_correction=True)
    step = value_and_grad(model, partial(loss, model))
    model.train()
    started = time.perf_counter()
    for i, batch in enumerate(islice(batches, steps), 1):
        value, gradients = step(*batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)  # type: ignore[no-untyped-call]  # mlx annotates it in part
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if i % 50 == 0:
            print(f"{name}: step {i}, loss {value.item():.5f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def save(folder: Path, model: Any, config: dict[str, Any], tokenizer: Any, bits: int | None) -> None:
    """Writes a model as mlx-lm writes a converted one, quantized where there are `bits`."""
    if bits is not None:
        model, config = quantize_model(model, config, group_size=64, bits=bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    # In tokenizer_config.json, where every version of transformers looks, not in a file of its own.
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def answer_alone(model: Any, tokenizer: Any, prompt: list[int], max_tokens: int) -> str:
    """The greedy reply; one that does not end by itself is marked, so that it equals no answer."""
    responses = list(stream_generate(model, tokenizer, prompt, max_tokens=max_tokens))
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
