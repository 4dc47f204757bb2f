"""OpenAI's own client against this server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from mlx_roster.errors import LoadFailed, QueueFull, WorkerCrashed
from tests.server.harness import Breaks, Running

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def sdk(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="atlas", messages=ASKED, user="me", n=1)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert answer._request_id is not None


def test_chat_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="atlas",
        messages=ASKED,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"adapters": "pirate"},
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {"atlas:pirate"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="atlas", prompt=["a", "b"])
    assert [choice.text for choice in answer.choices] == ["Hello there!"] * 2
    streamed = sdk.completions.create(model="atlas", prompt=[1, 2, 3], stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello there!"


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["atlas", "atlas:pirate", "org/scribe"]
    assert sdk.models.retrieve("org/scribe").owned_by == "mlx-roster"


def test_the_clients_own_retries_make_no_further_loads(server: Running) -> None:
    server.workers.failures["atlas"] = [LoadFailed("atlas has no weights")] * 3
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
    with client as sdk, pytest.raises(openai.InternalServerError) as failed:
        sdk.chat.completions.create(model="atlas", messages=ASKED)
    assert failed.value.code == "load_failed"
    assert server.workers.history == ["load atlas"]


def test_errors_have_the_classes_that_the_client_expects(sdk: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.models.retrieve("nope")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="atlas", messages=ASKED, temperature=-1)
    assert (bad.value.code, bad.value.param, bad.value.type) == (
        "invalid_request",
        "temperature",
        "invalid_request_error",
    )
    server.pieces = lambda _: Breaks([], QueueFull("too many", retry_after=9))
    with pytest.raises(openai.RateLimitError) as full:
        sdk.completions.create(model="atlas", prompt="hi", stream=True)
    assert (full.value.code, full.value.type) == ("queue_full", "rate_limit_error")
    server.pieces = lambda _: Breaks(["one"], WorkerCrashed("the worker died"))
    stream = sdk.completions.create(model="atlas", prompt="hi", stream=True)
    with pytest.raises(openai.APIError, match="the worker died"):
        list(stream)
