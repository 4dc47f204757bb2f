"""Builds the toys among the test assets: one that calls functions and one that thinks, trained from nothing.

    python scripts/train_toys.py [--out DIR] [NAME ...]

Fixed seeds: two runs on one machine write the same bytes. At the end each is loaded from disk with plain
`mlx_lm.load` and asked its whole exam, which is written beside it; a wrong answer is a non-zero exit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import batch_generate, load
from mlx_lm.models import qwen3
from toys import Example, caller, thinker
from training import (
    END_OF_TEXT,
    TURN_END,
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

OUT = Path(__file__).parents[1] / "tests/assets"
TOYS: dict[str, Any] = {toy.NAME: toy for toy in (caller, thinker)}
#: Steps in all, and of them those with simple examples.
STEPS = {"caller": (450, 150), "thinker": (550, 150)}
#: Examples of one batch, simple ones and others, and the tokens that each may have.
ROWS = {"caller": (32, 10), "thinker": (32, 32)}
LONGEST = {"caller": 288, "thinker": 80}
BITS = 8
MAX_TOKENS = 128

CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
VOCABULARY = 768


def rendered(tokenizer: Any, example: Example) -> list[int]:
    """The prompt, as a server would make it of the request."""
    text = tokenizer.apply_chat_template(
        example.messages, tools=example.tools, add_generation_prompt=True, tokenize=False, **example.template_args
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


class Lessons:
    """Endless random examples of one toy, as batches."""

    def __init__(self, toy: Any, tokenizer: Any, seed: int) -> None:
        self.toy = toy
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.words = words(tokenizer)
        self.header = tokenizer.encode(TURN_START + "assistant\n")
        self.end = tokenizer.convert_tokens_to_ids(TURN_END)
        self.padding = tokenizer.convert_tokens_to_ids(END_OF_TEXT)

    def row(self, simple: bool) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them are to be learned."""
        example = self.toy.lesson(self.rng, self.words, simple)
        prompt = rendered(self.tokenizer, example)
        answer = [*self.tokenizer.encode(example.answer), self.end]
        learned = [False] * len(prompt)
        if example.history:
            for start in range(len(prompt) - len(self.header)):
                if prompt[start : start + len(self.header)] == self.header:
                    first = start + len(self.header)
                    last = prompt.index(self.end, first) if self.end in prompt[first:] else first - 1
                    learned[first : last + 1] = [True] * (last + 1 - first)
        return prompt + answer, learned + [True] * len(answer)

    def batch(self, simple: bool) -> Batch:
        name = self.toy.NAME
        short = (row for row in iter(partial(self.row, simple), None) if len(row[0]) <= LONGEST[name])
        rows = list(islice(short, ROWS[name][0 if simple else 1]))
        length = max(len(ids) for ids, _ in rows)
        ids = np.full((len(rows), length), self.padding, np.int32)
        mask = np.zeros((len(rows), length), np.bool_)
        for i, (tokens, learned) in enumerate(rows):
            ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, learned
        positions = np.flatnonzero(mask[:, 1:])
        return Batch(mx.array(ids[:, :-1]), mx.array(positions), mx.array(ids[:, 1:].reshape(-1)[positions]))

    def batches(self) -> Iterator[Batch]:
        for _ in range(STEPS[self.toy.NAME][1]):
            yield self.batch(simple=True)
        while True:
            yield self.batch(simple=False)


def build(name: str, out: Path) -> None:
    toy = TOYS[name]
    context: Any = CONFIG["max_position_embeddings"]
    tokenizer = train_tokenizer(toy.texts(), VOCABULARY, toy.TEMPLATE, context, toy.MARKERS, toy.PIECES)
    config = CONFIG | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float32",
    }
    mx.random.seed(1)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    fit(name, model, Lessons(toy, tokenizer, seed=1).batches(), STEPS[name][0], 2e-3)
    save(out / name, model, config, tokenizer, BITS)
    write_exam(toy, out)


def write_exam(toy: Any, out: Path) -> None:
    """One example a line: the fields of an Example that say anything."""
    lines = []
    for example in toy.exam():
        said = {"messages": example.messages, "answer": example.answer}
        said |= {"tools": example.tools} if example.tools else {}
        said |= {"template_args": example.template_args} if example.template_args else {}
        lines.append(json.dumps(said))
    (out / f"{toy.NAME}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def ask_all(name: str, out: Path) -> list[str]:
    """The wrong answers of a toy, loaded as any user of mlx-lm would and asked everything; empty is the aim."""
    model, tokenizer = load(str(out / name))
    exam = [Example(**json.loads(line)) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    prompts = [rendered(tokenizer, example) for example in exam]
    margins = [
        smallest_margin(model, prompt, [*tokenizer.encode(example.answer), tokenizer.eos_token_id])
        for prompt, example in zip(prompts, exam, strict=True)
    ]
    print(f"{name}: {len(exam)} questions, smallest margin {min(margins):.2f}", flush=True)
    replies = list(enumerate(batch_generate(model, tokenizer, prompts, max_tokens=MAX_TOKENS).texts))
    replies += [(i, answer_alone(model, tokenizer, prompts[i], MAX_TOKENS)) for i in range(0, len(prompts), 7)]
    return [
        f"{name}: {exam[i].messages[-1]['content']!r} gave {reply!r}" for i, reply in replies if reply != exam[i].answer
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="default: tests/assets")
    parser.add_argument("names", nargs="*", default=list(TOYS), metavar="NAME", help="default: all of them")
    given = parser.parse_args()
    for name in given.names:
        build(name, given.out)
    if wrong := [line for name in given.names for line in ask_all(name, given.out)]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    preload_openblas()
    main()
