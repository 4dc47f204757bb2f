"""Run by the server's own virtual environment: log-likelihoods as the model itself gives them, in plain mlx-lm.

Reads a list of [context, continuation] and writes a list of [log-likelihood, is greedy], both as JSON.
"""

from __future__ import annotations

import json
import sys

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load


def main(folder: str) -> None:
    model, tokenizer = load(folder)
    answers = []
    for context, continuation in json.load(sys.stdin):
        ids = tokenizer.encode(context + continuation, add_special_tokens=False)
        start = len(tokenizer.encode(context, add_special_tokens=False))
        logits = model(mx.array([ids]))[0, start - 1 : -1].astype(mx.float32)
        scores, said = nn.log_softmax(logits), mx.array(ids[start:])
        greedy = mx.all(mx.argmax(scores, axis=-1) == said)
        answers.append([mx.take_along_axis(scores, said[:, None], axis=-1).sum().item(), greedy.item()])
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
