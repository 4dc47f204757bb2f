"""What is said when all goes well, to the byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from mlx_roster.core import Chat, Generation, Sampling, Text
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.shapes import FINGERPRINT
from tests.server.harness import Breaks, Running, assert_error, assert_error_object

USER = {"role": "user", "content": "hi"}
NO_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """A stream's chunks. Checks that it ends as it must."""
    assert response.status_code == 200, response.text
    *chunks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(chunk.startswith("data: {") for chunk in chunks)
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def head(body: dict[str, Any], prefix: str, kind: str, model: str) -> dict[str, Any]:
    """What is the same in every chunk of a response, checked and taken off; the rest is left in `body`."""
    taken = {name: body.pop(name) for name in ("id", "object", "created", "model", "system_fingerprint")}
    assert taken["id"].startswith(prefix)
    assert isinstance(taken["created"], int)
    assert (taken["object"], taken["model"], taken["system_fingerprint"]) == (kind, model, FINGERPRINT)
    return taken


def test_a_chat_answer(client: httpx2.Client) -> None:
    response = client.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": [USER]})
    body = response.json()
    head(body, "chatcmpl-", "chat.completion", "atlas")
    assert body == {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there!"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4, **NO_DETAILS},
    }
    assert response.headers["content-type"] == "application/json"
    assert float(response.headers["x-roster-wait-ms"]) >= float(response.headers["x-roster-load-ms"]) >= 0


def test_a_text_answer_keeps_its_spaces(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: [" a", "", "\n é🎈 "]
    body = client.post("/v1/completions", json={"model": "atlas:pirate", "prompt": "hi"}).json()
    head(body, "cmpl-", "text_completion", "atlas:pirate")
    assert body["choices"] == [{"index": 0, "text": " a\n é🎈 ", "logprobs": None, "finish_reason": "stop"}]


def test_a_chat_stream(client: httpx2.Client) -> None:
    response = client.post("/chat/completions", json={"model": "captain", "messages": [USER], "stream": True})
    chunks = events(response)
    heads = [head(chunk, "chatcmpl-", "chat.completion.chunk", "atlas:pirate") for chunk in chunks]
    assert all(one == heads[0] for one in heads)
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hello"}, None),
        ({"content": " there"}, None),
        ({"content": "!"}, "stop"),
    ]
    assert chunks == [
        {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["x-request-id"]
    assert response.headers["x-roster-wait-ms"].isdigit()
    assert response.headers["x-roster-load-ms"].isdigit()


def test_usage_follows_a_stream_when_asked_for(client: httpx2.Client) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/completions", json={"model": "atlas", "prompt": ["a", "b"], **asked}))
    assert all(chunk["usage"] is None for chunk in chunks)
    head(last, "cmpl-", "text_completion", "atlas")
    usage = {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8, **NO_DETAILS}
    assert last == {"choices": [], "usage": usage}


def test_pieces_without_text_make_no_chunk_but_the_first_and_the_last_are_said(
    server: Running, client: httpx2.Client
) -> None:
    server.pieces = lambda _: ["", "", "x", "", ""]
    chunks = events(client.post("/v1/chat/completions", json={"model": "atlas", "messages": [USER], "stream": True}))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "x", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]


def test_a_list_of_prompts_makes_choices_in_order(server: Running, client: httpx2.Client) -> None:
    def echo(generation: Generation) -> list[str]:
        assert isinstance(generation.prompt, Text)
        return list(generation.prompt.text)

    server.pieces = echo
    prompts = ["abc", "d", "ef"]
    body = client.post("/v1/completions", json={"model": "atlas", "prompt": prompts}).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == list(enumerate(prompts))

    said = ["", "", ""]
    finished = []
    chunks = events(client.post("/v1/completions", json={"model": "atlas", "prompt": prompts, "stream": True}))
    for chunk in chunks:
        [choice] = chunk["choices"]
        said[choice["index"]] += choice["text"]
        finished += [choice["index"]] if choice["finish_reason"] else []
    assert said == prompts
    assert finished == [1, 2, 0]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_one_refused_prompt_of_a_list_ends_them_all(server: Running, client: httpx2.Client, stream: bool) -> None:
    def script(generation: Generation) -> Sequence[str]:
        # Where the answer is a stream, it has begun by the time that the second prompt is refused.
        refused = Breaks(["y"] if stream else [], InvalidRequest("no", param="prompt"))
        return ["x"] * 10**6 if generation.prompt == Text("a") else refused

    server.pieces = script
    response = client.post("/v1/completions", json={"model": "atlas", "prompt": ["a", "b"], "stream": stream})
    server.seen("cancel atlas")
    if stream:
        *_, failed, done, _ = response.text.split("\n\n")
        assert done == "data: [DONE]"
        assert_error_object(json.loads(failed.removeprefix("data: "))["error"], "invalid_request", "prompt")
    else:
        assert_error(response, 400, "invalid_request", "prompt")


def test_what_a_worker_is_asked_for(server: Running, client: httpx2.Client) -> None:
    asked = {"temperature": 0, "top_k": 3, "min_p": 0.5, "seed": 4, "stop": ["x"], "max_completion_tokens": 2}
    body = {"model": "atlas", "messages": [USER], **asked}
    client.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"}).raise_for_status()
    assert server.generations == [
        Generation(
            prompt=Chat([USER]),
            max_tokens=2,
            sampling=Sampling(temperature=0, top_p=0.9, top_k=3, min_p=0.5, seed=4),
            stop=("x",),
            request="mine",
        )
    ]


@pytest.mark.parametrize(
    "named", [{"model": "atlas:pirate"}, {"model": "captain"}, {"model": "gpt-4o", "adapters": "pirate"}]
)
def test_every_way_to_name_an_adapter(server: Running, client: httpx2.Client, named: dict[str, str]) -> None:
    body = client.post("/v1/completions", json={"prompt": "hi", **named}).json()
    assert body["model"] == "atlas:pirate"
    assert server.workers.history[-1] == "submit atlas with atlas:pirate"


def test_ignored_fields_are_named_in_a_header(shared: httpx2.Client) -> None:
    body = {"model": "atlas", "prompt": "hi", "guided_json": 1, "a\r\nb: é": 2}
    response = shared.post("/v1/completions", json=body)
    assert response.is_success
    assert response.headers["x-roster-ignored"] == "guided_json,a%0D%0Ab%3A%20%C3%A9"
    # Refused or not, the fields were ignored.
    refused = shared.post("/v1/completions", json={**body, "model": "nope"})
    assert refused.headers["x-roster-ignored"] == response.headers["x-roster-ignored"]


def test_a_slow_reader_gets_fewer_longer_chunks(server: Running, client: httpx2.Client) -> None:
    piece = "x" * 1000
    server.pieces = lambda _: [piece] * 20_000
    asked = {"model": "atlas", "prompt": "hi", "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as response:
        # The worker is through while the socket is full of what nobody has read.
        server.until(lambda: not server.workers.workers["atlas"].running)
        body = response.read()
    chunks = events(httpx2.Response(200, content=body))
    assert sum(len(chunk["choices"][0]["text"]) for chunk in chunks) == 20_000 * len(piece)
    assert len(chunks) < 20_000
