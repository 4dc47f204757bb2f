"""mlx-lm without a server, in a process of its own: what the servers are measured against.

    python -m bench.bare generate MODEL     waves of prompts through one BatchGenerator: tokens/s of each
    python -m bench.bare cold MODEL         `mlx_lm.load` and the first token, timed, with mlx imported already

Commands come as JSON lines on standard input, answers go to standard output (`servers.Lines`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from mlx_lm import load, stream_generate
from mlx_lm.generate import BatchGenerator

Messages = list[dict[str, str]]


def _commands() -> Iterator[Any]:
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        yield json.loads(line)


def _prompt(tokenizer: Any, messages: Messages) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


def _wave(generator: BatchGenerator, prompts: list[list[int]], max_tokens: int) -> float:
    begun = time.perf_counter()
    generator.insert(prompts, [max_tokens] * len(prompts))
    tokens = 0
    while responses := generator.next_generated():
        tokens += len(responses)
    seconds = time.perf_counter() - begun
    if tokens != len(prompts) * max_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {len(prompts)} x {max_tokens}")
    return seconds


def generate(path: str) -> None:
    """Answers each command, `[[messages, ...], max_tokens]`, with the seconds that the wave took."""
    model, tokenizer = load(path)[:2]
    # All settings are mlx-lm's own.
    generator = BatchGenerator(model, stop_tokens=[(token,) for token in tokenizer.eos_token_ids])
    for wave, max_tokens in _commands():
        prompts = [_prompt(tokenizer, messages) for messages in wave]
        print(json.dumps(_wave(generator, prompts, max_tokens)), flush=True)


def cold(path: str) -> None:
    """Answers one command, `messages`, with the seconds from here to the first token."""
    messages = next(_commands())
    begun = time.perf_counter()
    model, tokenizer = load(path)[:2]
    for _ in stream_generate(model, tokenizer, _prompt(tokenizer, messages), max_tokens=1):
        print(json.dumps(time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    {"generate": generate, "cold": cold}[sys.argv[1]](sys.argv[2])
