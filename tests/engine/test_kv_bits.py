"""An engine whose KV caches are quantized: what it says, what it keeps and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from mlx_lm.generate import generate_step

from mlx_roster.core import ModelSource, Usage
from mlx_roster.engine.caches import cache_size, make_caches, quantization_for
from mlx_roster.engine.memory import GROWTH
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.models import load
from tests.engine import tiny
from tests.engine.sharing import ANSWER, ONE, PER_TOKEN, PROMPT, ask, resting, together
from tests.engine.test_forks import ask as ask_several
from tests.engine.test_scoring import prompt_scores
from tests.engine.tiny import Driven, words

pytestmark = pytest.mark.usefixtures("swept")

#: Bytes of a token of `wide` in 8 bits: its 2,048 numbers, and a scale and a bias in float32 for each 64 of them.
QUANTIZED = 2048 + 2048 // 64 * 8


def quantized(model: Path, bits: int | None = 8, **limits: Any) -> Driven:
    where: ModelSource = msgspec.structs.replace(tiny.source(model, **limits), kv_bits=bits)
    return Driven(load(where, lambda done, total: None), where)


def solo(model: Any, bits: int, prompt: Sequence[int], count: int) -> list[int]:
    caches = make_caches(model, quantization_for(model, ModelSource("tiny", "", 0, kv_bits=bits)))
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=count, prompt_cache=caches):
        tokens.append(token)
        if token == 0:
            break
    return tokens


def cached(engine: Driven, number: int) -> int:
    usage: Usage | None = engine.said.last(number).usage
    assert usage is not None
    return usage.cached


@pytest.mark.parametrize("bits", [3, 8])
def test_each_says_what_it_says_alone_and_what_is_kept_is_used(wide: Path, alone: Any, bits: int) -> None:
    with quantized(wide, bits, max_concurrency=3) as engine:
        prompts = [words(seed, 5 + 60 * (seed % 3)) for seed in range(6)]
        numbers = [engine.ask(tiny.request(prompt, 4 + 5 * seed)) for seed, prompt in enumerate(prompts)]
        engine.until_ended(*numbers)
        for seed, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            assert engine.tokens[number] == solo(alone, bits, prompt, 4 + 5 * seed)
        # The next turn, another end of the same beginning, and the same once more.
        turn = [*prompts[2], *engine.tokens[numbers[2]], *words(9, 7)]
        other = [*prompts[2][:50], *words(8, 30)]
        for prompt, common in ((turn, len(turn) - 7), (other, 50), (other, len(other) - 1)):
            number = engine.ask(tiny.request(prompt, 12))
            engine.until_ended(number)
            assert engine.tokens[number] == solo(alone, bits, prompt, 12)
            assert cached(engine, number) == common


def test_several_of_one_prompt_say_what_each_says_alone(wide: Path, alone: Any) -> None:
    prompt = words(1, 40)
    with quantized(wide, 4) as engine:
        texts = []
        for count in (3, 1):
            asked = msgspec.structs.replace(tiny.request(prompt, 8, temperature=1.0, seed=7), n=count)
            numbers = ask_several(engine, asked)
            engine.until_ended(*numbers)
            texts.append([engine.said.text(number) for number in numbers])
    assert texts[0][0] == texts[1][0]
    assert len(set(texts[0])) > 1
    with quantized(wide, 4, prompt_cache_entries=0) as engine:
        numbers = ask_several(engine, msgspec.structs.replace(tiny.request(prompt, 8), n=3))
        engine.until_ended(*numbers)
        wanted = solo(alone, 4, prompt, 8)
        assert [engine.tokens[number] for number in numbers] == [wanted] * 3


def test_scores_are_those_over_such_caches(wide: Path, alone: Any) -> None:
    prompts = [words(1, 30), words(2, 4), words(3, 300)]
    with quantized(wide, 4) as engine:
        asked = [msgspec.structs.replace(tiny.request(prompt, 0), echo=True, logprobs=0) for prompt in prompts]
        numbers = [engine.ask(one) for one in asked]
        engine.until_ended(*numbers)
        for number, prompt in zip(numbers, prompts, strict=True):
            caches = make_caches(alone, quantization_for(alone, ModelSource("", "", 0, kv_bits=4)))
            logits = alone(mx.array([prompt]), cache=caches)[0]
            expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            found = prompt_scores(engine, number)
            assert [one.id for one in found] == prompt
            for place, one in enumerate(found[1:]):
                assert one.logprob == pytest.approx(expected[place, one.id].item(), abs=1e-3)


def test_it_takes_what_is_estimated(wide: Path, alone: Any) -> None:
    assert cache_size(alone, quantization_for(alone, ModelSource("", "", 0, kv_bits=8))).bytes(1) == QUANTIZED
    with quantized(wide) as engine:
        numbers = [ask(engine, seed) for seed in range(2)]
        engine.until_tokens(numbers[1], 5)
        taken = engine.measured().kv
        assert 2 * (PROMPT + 5) * QUANTIZED <= taken <= 2 * (PROMPT + ANSWER + GROWTH) * QUANTIZED
        engine.until_ended(*numbers)
        engine.rest()
        tokens = sum(PROMPT + len(engine.tokens[number]) for number in numbers)
        assert engine.said.reports[-1].prompts == tokens * QUANTIZED < tokens * PER_TOKEN / 3


@pytest.mark.parametrize(("bits", "fit"), [(None, 1), (8, 3)])
def test_more_fit_into_the_same_share(wide: Path, bits: int | None, fit: int) -> None:
    with quantized(wide, bits, prompt_cache_entries=0) as engine:
        engine.share(resting(engine) + ONE)
        numbers = [ask(engine, seed) for seed in range(6)]
        engine.until_ended(*numbers)
        assert together(engine) == fit


def test_a_model_that_cannot_is_not_loaded(model: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^model 'tiny': kv.bits needs heads that a group of 32, 64 divides, not 8$"):
        quantized(model)
