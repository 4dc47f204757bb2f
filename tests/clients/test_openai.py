"""The `openai` SDK: answers, streams, models, raw responses, and errors as its exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

CLIENTS = ["openai"]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="no-key", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="atlas", messages=QUESTION, temperature=0)
    assert reply.object == "chat.completion"
    assert (reply.model, reply.id[:9]) == ("atlas", "chatcmpl-")
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None


def test_stream(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="atlas:pirate", messages=QUESTION, temperature=0, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant"] + [None] * (len(chunks) - 2)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Arr! The capital of France be Paris."
    )
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="atlas", messages=QUESTION, temperature=0) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert said == final.choices[0].message.content == ANSWER


def test_async_and_concurrent(url: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=url, api_key="no-key", max_retries=0) as client:
            models = ["atlas", "atlas:french", "gpt-3.5-turbo", "atlas"]
            replies = [client.chat.completions.create(model=m, messages=QUESTION, temperature=0) for m in models]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*replies)]

    assert asyncio.run(ask()) == [ANSWER, "La capitale de la France est Paris.", ANSWER, ANSWER]


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="geographer", prompt=["a", "b"], max_tokens=100, temperature=0)
    assert reply.object == "text_completion"
    assert [(choice.index, choice.text) for choice in reply.choices] == [
        (0, '{"name": "France", "capital": "Paris"}'),
        (1, '{"name": "France", "capital": "Paris"}'),
    ]
    stream = client.completions.create(model="geographer", prompt=[1, 2, 3], max_tokens=100, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == '{"name": "France", "capital": "Paris"}'


def test_completions_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="atlas", prompt="The capital of France", max_tokens=4, logprobs=2, echo=True, temperature=0
    )
    scores = reply.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert scores.token_logprobs is not None
    assert "".join(scores.tokens) == reply.choices[0].text
    assert scores.token_logprobs[0] is None
    assert all(score <= 0 for score in scores.token_logprobs[1:])


def test_chat_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="atlas", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3
    )
    scores = reply.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    assert bytes(byte for score in scores.content for byte in score.bytes or []).decode().startswith(ANSWER)
    assert all(score.logprob == score.top_logprobs[0].logprob for score in scores.content)
    assert {len(score.top_logprobs) for score in scores.content} == {3}


def test_several_choices(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="babbler", messages=QUESTION, n=3, max_tokens=5, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) == 3


def test_sampling_fields(client: openai.OpenAI) -> None:
    fields = {
        "temperature": 1.5,
        "top_p": 0.9,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {"5": -100},
        "seed": 7,
        "stop": ["zzz", "yyy"],
        "max_completion_tokens": 6,
        "user": "me",
    }
    answers = {
        client.chat.completions.create(model="babbler", messages=QUESTION, **fields).choices[0].message.content
        for _ in range(2)
    }
    assert len(answers) == 1


def test_models(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"atlas", "atlas:pirate", "scribe", "weather"} <= set(ids)
    assert client.models.retrieve("atlas:pirate").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_raw_response(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="atlas",
        messages=QUESTION,
        temperature=0,
        extra_headers={"x-request-id": "mine"},
        extra_body={"odd_one": 1},
    )
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == "mine"
    assert raw.headers["x-roster-ignored"] == "odd_one"
    assert raw.parse().choices[0].message.content == ANSWER


def test_streaming_response(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="atlas", messages=QUESTION, temperature=0, stream=True
    ) as raw:
        lines = [line for line in raw.iter_lines() if line]
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"temperature": -1}, openai.BadRequestError, "invalid_request", "temperature"),
        ({"messages": []}, openai.BadRequestError, "invalid_request", "messages"),
        ({"max_tokens": "many"}, openai.BadRequestError, "invalid_request", "max_tokens"),
        ({"extra_body": {"adapter": "pirate"}}, openai.BadRequestError, "invalid_request", "adapter"),
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "atlas:nobody"}, openai.NotFoundError, "adapter_not_found", None),
        (
            {"messages": [{"role": "user", "content": "far too long " * 5000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
def test_errors(
    client: openai.OpenAI, fields: dict[str, object], error: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "atlas", "messages": QUESTION, **fields})
    assert caught.value.code == code
    assert param is None or caught.value.param == param
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


def test_errors_of_a_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="atlas", messages=QUESTION, stream=True, top_p=2)
    assert caught.value.param == "top_p"


def test_wrong_route(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="atlas", input="x")
