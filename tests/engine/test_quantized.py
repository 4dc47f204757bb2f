"""Quantized KV caches: held to mlx-lm's own where it has them, and a batch of them to each sequence by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import batch_generate
from mlx_lm import load as load_with_mlx_lm
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache, trim_prompt_cache

from mlx_roster import demo
from mlx_roster.core import ModelSource, group_size
from mlx_roster.demo.facts import Fact, facts
from mlx_roster.engine.caches import cache_size, make_caches, quantization_for
from mlx_roster.engine.prefixes import Prefixes, cuttable
from mlx_roster.engine.quantized import Quantization, QuantizedKV
from mlx_roster.errors import LoadFailed
from tests.engine import tiny
from tests.engine.tiny import words

SOFT: dict[str, Any] = {
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rope_theta": 1e4,
    # With fewer, mlx-lm's mask for a batch of gemma2 is that of other rows.
    "num_key_value_heads": 4,
}

#: Heads that are shared and heads that are not, windows between the layers, and an attention that knows no packed keys.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {},
    "gemma2": SOFT,
}
ANSWER = 16


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A random model of each family, as mlx-lm has it."""
    made: dict[str, Any] = {}

    def family(name: str) -> Any:
        if name not in made:
            sizes = {"head_dim": 32} | FAMILIES[name]
            made[name] = tiny.alone(tiny.write_model(tmp_path_factory.mktemp(name), name, **sizes))
        return made[name]

    return family


def source(bits: int | None, group: int = 64) -> ModelSource:
    return ModelSource("tiny", "", memory=2**30, kv_bits=bits, kv_group_size=group)


def said(model: Any, prompt: Sequence[int], caches: list[Any], count: int = ANSWER, **options: Any) -> list[int]:
    """What mlx-lm's own loop generates over `caches`."""
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=count, prompt_cache=caches, **options)
    return [token for token, _ in steps]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_one_sequence_says_what_it_says_over_mlx_lms_own(
    families: Callable[[str], Any], family: str, bits: int
) -> None:
    model = families(family)
    quantization = quantization_for(model, source(bits))
    assert quantization == Quantization(bits, 64)
    # Longer than caches grow by, and taken in by portions or as a whole.
    prompt = words(bits, 280)
    group = group_size(64, FAMILIES[family].get("head_dim", 32))
    theirs = [QuantizedKVCache(group, bits) if type(one) is KVCache else one for one in make_prompt_cache(model)]
    wanted = said(model, prompt, theirs)
    assert said(model, prompt, make_caches(model, quantization)) == wanted
    assert said(model, prompt, make_caches(model, quantization), prefill_step_size=48) == wanted
    # With so few bits that it can be told by the answer.
    assert bits > 2 or wanted != said(model, prompt, make_caches(model))


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_says_what_each_sequence_says_alone(families: Callable[[str], Any], family: str, bits: int) -> None:
    """Of prompts of all lengths, joining while others run and leaving before others end."""
    model = families(family)
    quantization = quantization_for(model, source(bits))
    assert quantization is not None
    assert quantization.direct == (family != "gemma2")
    prompts = [words(seed, (1, 2, 30, 7, 300, 12, 64, 3)[seed]) for seed in range(8)]
    counts = [6, 20, 3, 12, 9, 16, 1, 14]
    wanted = [
        said(model, prompt, make_caches(model, quantization), count)
        for prompt, count in zip(prompts, counts, strict=True)
    ]
    generator = BatchGenerator(model, completion_batch_size=5, prefill_batch_size=3, prefill_step_size=20)
    found: dict[int, list[int]] = {}
    gone = None
    for prompt, count in zip(prompts, counts, strict=True):
        caches = [make_caches(model, quantization) for _ in range(2)]
        for uid in generator.insert([prompt, prompt], [count, 40], caches=caches):
            found[uid] = []
        # Beside each, one that is taken out before its end.
        if gone is not None:
            generator.remove([gone])
        gone = uid
        for _ in range(3):
            for response in generator.next()[1]:
                found[response.uid].append(response.token)
    generator.remove([gone])
    while responses := generator.next_generated():
        for response in responses:
            found[response.uid].append(response.token)
    generator.close()
    assert [found[2 * number] for number in range(len(prompts))] == wanted


def test_what_a_sequence_has_left_is_begun_from(families: Callable[[str], Any]) -> None:
    model = families("qwen3")
    quantization = quantization_for(model, source(4))
    generator = BatchGenerator(model)
    prompts = [words(1, 50), words(2, 9)]
    uids = generator.insert(prompts, [5, 5], caches=[make_caches(model, quantization) for _ in prompts])
    ended = {}
    while responses := generator.next_generated():
        ended |= {one.uid: (one.all_tokens, one.prompt_cache) for one in responses if one.finish_reason}
    generator.close()
    for uid, prompt in zip(uids, prompts, strict=True):
        tokens, caches = ended[uid]
        assert all(type(cache) is QuantizedKV and cache.offset == len(tokens) for cache in caches)
        assert trim_prompt_cache(caches, len(tokens) - 5) == len(tokens) - 5
        other = [*prompt[:5], *words(3, 20)]
        assert said(model, other[5:], caches) == said(model, other, make_caches(model, quantization))


def test_prompt_cache_keeps_and_cuts_them(families: Callable[[str], Any]) -> None:
    model, prompt = families("llama"), words(1, 40)
    quantization = quantization_for(model, source(8))
    assert cuttable(make_caches(model, quantization))
    caches = make_caches(model, quantization)
    said(model, prompt, caches, 1)
    trim_prompt_cache(caches, caches[0].offset - len(prompt))
    prefixes = Prefixes(4, 2**20)
    prefixes.put(None, np.array(prompt, dtype=np.int32), caches)
    assert prefixes.nbytes == sum(cache.nbytes for cache in caches) > 0
    before = [np.array(array) for cache in caches for array in cache.state]
    for common in (12, 30):
        other = [*prompt[:common], *words(2, 9)]
        for _ in range(2):
            taken = prefixes.take(None, np.array(other, dtype=np.int32))
            assert taken is not None
            assert taken.length == common
            assert said(model, other[common:], taken.caches) == said(model, other, make_caches(model, quantization))
    after = [np.array(array) for cache in caches for array in cache.state]
    assert all(map(np.array_equal, before, after))


@pytest.mark.parametrize(("asked", "head", "size"), [(64, 64, 64), (128, 64, 64), (64, 96, 32), (32, 128, 32)])
def test_group_is_the_largest_that_fits(tmp_path: Path, asked: int, head: int, size: int) -> None:
    model = tiny.alone(tiny.write_model(tmp_path, head_dim=head))
    quantization = quantization_for(model, source(4, asked))
    caches = make_caches(model, quantization)
    model(mx.array([[1]]), cache=caches)
    assert {cache.group_size for cache in caches} == {size}
    numbers = 2 * 2 * 2 * head
    assert cache_size(model, quantization).per_token == numbers // 2 + numbers // size * 8


def test_heads_that_no_group_fits_are_refused(tmp_path: Path) -> None:
    model = tiny.alone(tiny.write_model(tmp_path, head_dim=80))
    with pytest.raises(LoadFailed) as caught:
        quantization_for(model, source(8))
    assert caught.value.message == "model 'tiny': kv.bits needs heads that a group of 32, 64 divides, not 80"
    assert quantization_for(model, source(None)) is None


def test_recurrent_states_stay_as_they_are(tmp_path: Path) -> None:
    model = tiny.alone(tiny.write_model(tmp_path, "mamba2"))
    quantization = quantization_for(model, source(4))
    assert cache_size(model, quantization) == cache_size(model)
    caches = make_caches(model, quantization)
    assert [type(cache) for cache in caches] == [type(cache) for cache in make_prompt_cache(model)]


@pytest.fixture(scope="module")
def atlas() -> tuple[Any, Any]:
    model, tokenizer, *_ = load_with_mlx_lm(str(demo.directory() / "models" / "atlas"))
    return model, tokenizer


def questions(tokenizer: Any, asked: Sequence[Fact]) -> list[list[int]]:
    chats = [[{"role": "user", "content": fact.question}] for fact in asked]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]


@pytest.mark.parametrize(("bits", "right"), [(8, 1.0), (4, 0.9)])
def test_demo_still_knows_its_facts(atlas: tuple[Any, Any], bits: int, right: float) -> None:
    model, tokenizer = atlas
    quantization = quantization_for(model, source(bits))
    asked = facts("atlas")[::4]
    prompts = questions(tokenizer, asked)
    caches = [make_caches(model, quantization) for _ in prompts]
    replies = batch_generate(model, tokenizer, prompts, prompt_caches=caches).texts
    known = sum(reply == fact.answer for reply, fact in zip(replies, asked, strict=True))
    assert known >= right * len(asked)
    for prompt, reply in zip(prompts[::5], replies[::5], strict=True):
        assert tokenizer.decode(said(model, prompt, make_caches(model, quantization), 40)).startswith(reply)


def test_demo_says_what_it_says_with_mlx_lms_kv_bits(atlas: tuple[Any, Any]) -> None:
    """mlx-lm attends to a prompt's first portion before it is quantized: near enough for a model that is sure."""
    model, tokenizer = atlas
    quantization = quantization_for(model, source(8))
    for prompt in questions(tokenizer, facts("atlas")[5::20]):
        steps = generate_step(mx.array(prompt), model, max_tokens=12, kv_bits=8, quantized_kv_start=0)
        assert said(model, prompt, make_caches(model, quantization), 12) == [token for token, _ in steps]
