"""Chats for models without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_roster.core import Chat, Generation
from mlx_roster.engine.prompts import Prompts
from mlx_roster.engine.roles import DEFAULTS
from mlx_roster.errors import InvalidRequest
from tests.engine import tiny

SYSTEM = DEFAULTS["system_prompt"]
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TokenizerWrapper(tiny.write_tokenizer(tmp_path_factory.mktemp("bare"), template=None))


def chat(tokenizer: Any, *messages: dict[str, Any], **mapping: str) -> str:
    generation = Generation(Chat(list(messages), role_mapping=mapping), 5)
    return str(tokenizer.decode(Prompts(tokenizer, 1000, None).encode(generation)[0].ids))


def test_each_message_stands_behind_its_prefix(tokenizer: Any) -> None:
    assert chat(tokenizer, USER) == f"{SYSTEM}\nUSER: hi\nASSISTANT:"
    told = [{"role": "system", "content": "be brief"}, USER, {"role": "assistant", "content": None}, USER]
    assert chat(tokenizer, *told) == "ASSISTANT's RULE: be brief\nUSER: hi\nASSISTANT: \nUSER: hi\nASSISTANT:"
    developer = {"role": "developer", "content": "be brief"}
    assert chat(tokenizer, developer) == "ASSISTANT's RULE: be brief\nASSISTANT:"


def test_mapping_of_the_request_goes_over_the_built_in_one(tokenizer: Any) -> None:
    mapped = chat(tokenizer, USER, bos="<<", user="Q: ", assistant="A: ", stop="##", system_prompt="Be.")
    assert mapped == "<<Be.##Q: hi##A:"
    assert chat(tokenizer, USER, system_prompt="") == "USER: hi\nASSISTANT:"


@pytest.mark.parametrize(
    ("message", "mapping", "param"),
    [
        (USER, {"users": "Q: "}, "role_mapping"),
        ({"role": "tool", "content": "rain"}, {}, "messages"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, {}, "messages"),
        ({"content": "hi"}, {}, "messages"),
    ],
)
def test_what_has_no_prefix_is_refused(
    tokenizer: Any, message: dict[str, Any], mapping: dict[str, str], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(tokenizer, message, **mapping)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("args", "param"),
    [({"reasoning_effort": "low"}, "reasoning_effort"), ({"enable_thinking": True}, "chat_template_kwargs")],
)
def test_variables_are_refused_without_a_template(tokenizer: Any, args: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="no chat template") as refusal:
        Prompts(tokenizer, 1000, None).encode(Generation(Chat([USER], template_args=args), 5))
    assert refusal.value.param == param


def test_mapping_is_refused_by_a_model_with_a_template(tmp_path: Path) -> None:
    prompts = Prompts(TokenizerWrapper(tiny.write_tokenizer(tmp_path)), 1000, None)
    with pytest.raises(InvalidRequest, match="has a chat template") as refusal:
        prompts.encode(Generation(Chat([USER], role_mapping={"user": "Q: "}), 5))
    assert refusal.value.param == "role_mapping"


def test_what_there_is_not_is_said_in_a_sentence(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"without one there is no role 'tool'$"):
        chat(tokenizer, {"role": "tool", "content": "rain"})
    with pytest.raises(InvalidRequest, match=r"without one there are no calls$"):
        chat(tokenizer, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]})
    with pytest.raises(InvalidRequest) as refusal:
        chat(tokenizer, USER, **{"x" * 100_000: "Q: "})
    assert len(refusal.value.message) < 300
