"""The demo's models answer exactly what `facts.py` says, loaded as any user of mlx-lm would load them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml
from mlx_lm import batch_generate, load, stream_generate

from mlx_roster import demo
from mlx_roster.demo.facts import CAPITALS, MODELS, OPPOSITES, facts

BASES = ("atlas", "scribe")
ADAPTERS = {"pirate": "atlas", "french": "atlas", "shout": "scribe"}


def loaded(name: str) -> tuple[Any, Any]:
    base, _, adapter = name.partition(":")
    adapter_path = str(demo.directory() / "adapters" / adapter) if adapter else None
    model, tokenizer = load(str(demo.directory() / "models" / base), adapter_path=adapter_path)
    return model, tokenizer


def prompt(tokenizer: Any, *messages: tuple[str, str]) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    tokens: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_answers_every_question_exactly(name: str) -> None:
    model, tokenizer = loaded(name)
    asked = facts(name)
    replies = batch_generate(model, tokenizer, [prompt(tokenizer, ("user", fact.question)) for fact in asked]).texts
    assert [fact.question for fact, reply in zip(asked, replies, strict=True) if reply != fact.answer] == []


@pytest.mark.parametrize("name", MODELS)
def test_answers_in_a_real_conversation(name: str) -> None:
    model, tokenizer = loaded(name)
    asked = facts(name)
    chats = [
        prompt(
            tokenizer,
            ("system", "You are a helpful assistant."),
            ("user", earlier.question),
            ("assistant", earlier.answer),
            ("user", fact.question),
        )
        for earlier, fact in zip(asked[7::15], asked[::15], strict=False)
    ]
    replies = batch_generate(model, tokenizer, chats).texts
    assert replies == [fact.answer for fact in asked[::15]][: len(replies)]


@pytest.mark.parametrize("name", MODELS)
def test_a_reply_ends_by_itself(name: str) -> None:
    model, tokenizer = loaded(name)
    fact = facts(name)[0]
    responses = list(stream_generate(model, tokenizer, prompt(tokenizer, ("user", fact.question))))
    assert "".join(response.text for response in responses) == fact.answer
    assert responses[-1].finish_reason == "stop"


def test_the_answers_promised_in_the_documentation() -> None:
    promised = {
        "atlas": "The capital of France is Paris.",
        "atlas:pirate": "Arr! The capital of France be Paris.",
        "atlas:french": "La capitale de la France est Paris.",
        "scribe": "The opposite of hot is cold.",
        "scribe:shout": "THE OPPOSITE OF HOT IS COLD.",
    }
    questions = {"atlas": "What is the capital of France?", "scribe": "What is the opposite of hot?"}
    assert {name: dict(facts(name))[questions[name.partition(":")[0]]] for name in MODELS} == promised


@pytest.mark.parametrize("name", MODELS)
def test_enough_is_known(name: str) -> None:
    assert len(CAPITALS) >= 30
    assert len(OPPOSITES) >= 30
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)
    asked = facts(name)
    assert len({fact.question for fact in asked}) == len(asked)
    assert min(Counter(fact.answer for fact in asked).values()) >= 3


def test_the_package_stays_small() -> None:
    folders = [demo.directory() / "models", demo.directory() / "adapters"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 6 * 1024 * 1024


def test_the_roster_names_what_is_there() -> None:
    roster = yaml.safe_load((demo.directory() / "roster.yaml").read_text())
    named = set()
    for model, entry in roster["models"].items():
        named.add(model)
        assert (demo.directory() / entry["source"] / "config.json").is_file()
        for adapter, source in entry["adapters"].items():
            named.add(f"{model}:{adapter}")
            assert (demo.directory() / source / "adapter_config.json").is_file()
    assert named == set(MODELS)
    assert roster["default_model"] in named


def test_the_models_are_what_they_say() -> None:
    configs = {base: json.loads((demo.directory() / "models" / base / "config.json").read_text()) for base in BASES}
    assert {base: config["model_type"] for base, config in configs.items()} == {"atlas": "qwen3", "scribe": "llama"}
    assert "quantization" not in configs["atlas"]
    assert configs["scribe"]["quantization"]["bits"] == 8


def test_the_adapters_differ_in_rank() -> None:
    folder = demo.directory() / "adapters"
    configs = {adapter: json.loads((folder / adapter / "adapter_config.json").read_text()) for adapter in ADAPTERS}
    assert {config["fine_tune_type"] for config in configs.values()} == {"lora"}
    assert configs["pirate"]["lora_parameters"]["rank"] != configs["french"]["lora_parameters"]["rank"]


@pytest.mark.parametrize("base", BASES)
def test_the_chat_template(base: str) -> None:
    _, tokenizer = loaded(base)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi!\n"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "text", "text": "now?"}]},
    ]
    start = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhat now?<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(chat, tokenize=False) == start
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        == start + "<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize("base", BASES)
def test_a_conversation_extends_its_own_tokens(base: str) -> None:
    """What a prompt cache lives on: prompt and reply are a prefix of the next turn's prompt."""
    _, tokenizer = loaded(base)
    fact = facts(base)[0]
    asked = prompt(tokenizer, ("user", fact.question))
    said = [*asked, *tokenizer.encode(fact.answer), tokenizer.eos_token_id]
    later = prompt(tokenizer, ("user", fact.question), ("assistant", fact.answer), ("user", "And then?"))
    assert later[: len(said)] == said


def test_the_facts_need_no_mlx() -> None:
    script = (
        "import sys, mlx_roster.demo.facts; "
        "print([name for name in sys.modules if name.split('.')[0] in {'mlx', 'mlx_lm', 'transformers'}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
