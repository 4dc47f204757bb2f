"""Prompts to token ids, and every way in which a prompt is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import processors

from mlx_roster.core import Chat, Generation, Sampling, Text, Tokens
from mlx_roster.engine.prompts import Prompts
from mlx_roster.errors import ContextLengthExceeded, InvalidRequest
from tests.engine import tiny

VOCABULARY = 321


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return TokenizerWrapper(tiny.write_tokenizer(folder))


@pytest.fixture
def prompts(tokenizer: Any) -> Prompts:
    return Prompts(tokenizer, VOCABULARY, 64)


def encode(prompts: Prompts, prompt: Chat | Text | Tokens, max_tokens: int = 10) -> tuple[list[int], int]:
    encoded, room = prompts.encode(Generation(prompt=prompt, max_tokens=max_tokens))
    assert encoded.tokens.tolist() == encoded.ids
    return encoded.ids, room


def user(content: Any, **more: Any) -> Chat:
    return Chat([{"role": "user", "content": content, **more}])


def test_chat_goes_through_the_template_with_a_generation_prompt(prompts: Prompts, tokenizer: Any) -> None:
    ids, _ = encode(prompts, user("hello"))
    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_null_content_is_rendered_as_nothing(prompts: Prompts, tokenizer: Any) -> None:
    ids, _ = encode(prompts, user(None))
    assert tokenizer.decode(ids) == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"


def test_text_is_tokenized_as_it_stands(prompts: Prompts, tokenizer: Any) -> None:
    ids, _ = encode(prompts, Text("hello you"))
    assert tokenizer.decode(ids) == "hello you"


def test_beginning_of_text_token_is_added_once(folder: Path) -> None:
    plain = tiny.write_tokenizer(folder / "bos")
    plain.bos_token = "<|endoftext|>"
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    prompts = Prompts(TokenizerWrapper(plain), VOCABULARY, 64)
    once = encode(prompts, Text("hello"))[0]
    assert once[0] == 0
    assert encode(prompts, Text("<|endoftext|>hello"))[0] == once
    assert 0 not in encode(prompts, user("hello"))[0]


def test_tokens_are_taken_as_they_are(prompts: Prompts) -> None:
    assert encode(prompts, Tokens([5, 320, 0]))[0] == [5, 320, 0]


@pytest.mark.parametrize("wrong", [VOCABULARY, -1, 2**40])
def test_token_outside_the_vocabulary_is_refused_by_name(prompts: Prompts, wrong: int) -> None:
    with pytest.raises(InvalidRequest, match=str(wrong)) as refusal:
        encode(prompts, Tokens([1, wrong]))
    assert refusal.value.param == "prompt"


def test_text_whose_token_the_model_has_no_row_for_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequest, match="320"):
        encode(Prompts(tokenizer, 320, None), Text("a<tool>b"))


@pytest.mark.parametrize(("prompt", "param"), [(Tokens([]), "prompt"), (Text(""), "prompt"), (Chat([]), "messages")])
def test_empty_prompt_is_refused(prompts: Prompts, prompt: Chat | Text | Tokens, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        encode(prompts, prompt)
    assert refusal.value.param == param


def test_template_that_raises_is_heard(prompts: Prompts) -> None:
    with pytest.raises(InvalidRequest, match="unknown role wizard") as refusal:
        encode(prompts, Chat([{"role": "wizard", "content": "hi"}]))
    assert refusal.value.param == "messages"


@pytest.mark.parametrize("message", [{}, {"role": "user", "content": 3}, {"role": "user", "content": ["x"]}])
def test_messages_that_the_template_cannot_render_are_refused(prompts: Prompts, message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        encode(prompts, Chat([message]))
    assert refusal.value.param == "messages"


def test_max_tokens_is_capped_to_what_the_context_leaves(prompts: Prompts) -> None:
    assert encode(prompts, Tokens([5] * 60), 10)[1] == 4
    assert encode(prompts, Tokens([5] * 63), 10)[1] == 1
    assert encode(prompts, Tokens([5] * 10), 10)[1] == 10


def test_prompt_that_leaves_no_room_is_refused_with_both_counts(prompts: Prompts) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"64 tokens.*64 tokens") as refusal:
        encode(prompts, Tokens([5] * 64))
    assert refusal.value.param == "prompt"


def test_model_without_a_limit_takes_any_length(tokenizer: Any) -> None:
    assert encode(Prompts(tokenizer, VOCABULARY, None), Tokens([5] * 5000), 7)[1] == 7


@pytest.mark.parametrize(("max_tokens", "echo"), [(0, False), (-1, True)])
def test_max_tokens_below_one_is_refused(prompts: Prompts, max_tokens: int, echo: bool) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        prompts.encode(Generation(Text("hi"), max_tokens, echo=echo))
    assert refusal.value.param == "max_tokens"


def test_prompt_that_is_only_echoed_may_fill_the_context(prompts: Prompts) -> None:
    assert prompts.encode(Generation(Tokens([5] * 64), 0, echo=True))[1] == 0
    with pytest.raises(ContextLengthExceeded):
        prompts.encode(Generation(Tokens([5] * 65), 0, echo=True))


@pytest.mark.parametrize("wrong", [VOCABULARY, -1, 2**70])
def test_bias_outside_the_vocabulary_is_refused_by_name(prompts: Prompts, wrong: int) -> None:
    allowed = Sampling(logit_bias={0: 1.0, VOCABULARY - 1: -100.0})
    assert prompts.encode(Generation(Text("hi"), 5, sampling=allowed))[1] == 5
    with pytest.raises(InvalidRequest, match=str(wrong)) as refusal:
        prompts.encode(Generation(Text("hi"), 5, sampling=Sampling(logit_bias={1: 1.0, wrong: 1.0})))
    assert refusal.value.param == "logit_bias"


def marks(prompts: Prompts, *messages: tuple[str, str]) -> tuple[list[int], list[list[int]]]:
    """The prompt's ids, and what stands before each of its marks."""
    chat = Chat([{"role": role, "content": content} for role, content in messages])
    prompt, _ = prompts.encode(Generation(prompt=chat, max_tokens=1))
    return prompt.ids, [prompt.ids[:mark] for mark in prompt.marks]


def test_marks_are_behind_the_system_prompt_and_before_what_asks_for_an_answer(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer, VOCABULARY, None, marking=True)
    _, parts = marks(prompts, ("system", "be brief"), ("user", "hello"))
    assert [tokenizer.decode(part) for part in parts] == [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n",
    ]
    longer, _ = marks(prompts, ("system", "be brief"), ("user", "hello"), ("assistant", "hello you"), ("user", "hello"))
    other, _ = marks(prompts, ("system", "be brief"), ("user", "the dog"))
    assert longer[: len(parts[1])] == parts[1]
    assert other[: len(parts[0])] == parts[0]


def test_marks_are_left_out_where_they_cannot_be_known(folder: Path, prompts: Prompts, tokenizer: Any) -> None:
    assert marks(prompts, ("system", "a"), ("user", "b"))[1] == [], "nobody asked for any"
    refusing = "{%- if messages|length < 3 -%}{{ raise_exception('no') }}{%- endif -%}" + tiny.TEMPLATE
    picky = TokenizerWrapper(tiny.write_tokenizer(folder / "picky", refusing))
    marking = Prompts(picky, VOCABULARY, None, marking=True)
    assert marks(marking, ("system", "a"), ("user", "b"), ("user", "c"))[1] == []
    plain = Prompts(tokenizer, VOCABULARY, None, marking=True)
    assert plain.encode(Generation(prompt=Text("hello"), max_tokens=1))[0].marks == ()
