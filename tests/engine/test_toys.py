"""The toys among the test assets, which `scripts/train_toys.py` built: each has its exam beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import batch_generate, load

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.mark.parametrize("name", ["caller", "thinker"])
def test_a_toy_answers_as_it_was_taught(name: str) -> None:
    model, tokenizer = load(str(ASSETS / name))
    exam: list[dict[str, Any]] = [json.loads(line) for line in (ASSETS / f"{name}.jsonl").read_text().splitlines()[::8]]
    prompts = [
        tokenizer.apply_chat_template(
            example["messages"],
            tools=example.get("tools"),
            add_generation_prompt=True,
            **example.get("template_args", {}),
        )
        for example in exam
    ]
    replies = batch_generate(model, tokenizer, prompts, max_tokens=128).texts
    assert replies == [example["answer"] for example in exam]


def test_what_mlx_lm_sees_in_them() -> None:
    _, caller = load(str(ASSETS / "caller"))
    _, thinker = load(str(ASSETS / "thinker"))
    assert (caller.has_tool_calling, caller.has_thinking) == (True, False)
    assert (thinker.has_tool_calling, thinker.has_thinking) == (False, True)
    assert caller.tool_parser('\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n') == {
        "name": "get_time",
        "arguments": {"city": "Oslo"},
    }
