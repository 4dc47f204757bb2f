"""What is said besides text: reasoning, tool calls, log-probabilities; in one piece or streamed, it is the same."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from mlx_roster.core import Alternative, Aside, CallDelta, Delta, FinishReason, Generation, Scored, Usage
from mlx_roster.server.openai.answers import Answer, ChatChunk, ChatCompletion, TextChunk, TextCompletion
from tests.server.harness import Running

CHAT = {"model": "org/scribe", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "org/scribe", "prompt": "hi"}
Said = list[str | Delta]


def aside(text: str = "", *, finish: FinishReason | None = None, **said: Any) -> Delta:
    return Delta(0, text, finish, aside=Aside(**said))


def scored(text: str | bytes, logprob: float | None, *top: tuple[str | bytes, float]) -> Scored:
    """A token whose id is its length in bytes, and so for those that might have been."""

    def raw(one: str | bytes) -> bytes:
        return one if isinstance(one, bytes) else one.encode()

    alternatives = [Alternative(len(raw(one)), raw(one), number) for one, number in top]
    return Scored(len(raw(text)), raw(text), logprob, alternatives)


CALLS: Said = [
    "Let me ",
    "see.",
    aside(calls=[CallDelta(0, "", "call_1", "look")]),
    aside(calls=[CallDelta(0, '{"a"'), CallDelta(0, ": 1}")]),
    aside(calls=[CallDelta(1, '{"b": 2}', "call_2", "run")]),
    Delta(0, "", "tool_calls"),
]
CALLED = [
    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "run", "arguments": '{"b": 2}'}},
]


def events(response: httpx2.Response, shape: type[Answer]) -> list[dict[str, Any]]:
    """A stream's chunks, each of which has the shape that is documented."""
    assert response.status_code == 200, response.text
    *chunks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    decoded = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    for chunk in decoded:
        shape.model_validate(chunk)
    return decoded


def whole(client: httpx2.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    (ChatCompletion if "chat" in path else TextCompletion).model_validate(answer)
    return answer


def joined(pieces: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Log-probabilities of one choice, from all its chunks."""
    said = [piece for piece in pieces if piece is not None]
    return {name: [one for piece in said for one in piece[name]] for name in said[0]} if said else None


def put_together(chunks: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """The choices that a stream's chunks come to, as an answer in one piece has them."""
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            by_index.setdefault(choice["index"], []).append(choice)
    choices = []
    for index, said in sorted(by_index.items()):
        assert [choice["finish_reason"] for choice in said[:-1]] == [None] * (len(said) - 1)
        content = (
            {"message": message([choice["delta"] for choice in said])}
            if "chat" in path
            else {"text": "".join(choice["text"] for choice in said)}
        )
        logprobs = joined([choice["logprobs"] for choice in said])
        choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": said[-1]["finish_reason"]})
    return choices


def message(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert not any("role" in delta for delta in deltas[1:])
    calls: dict[int, dict[str, Any]] = {}
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        if "id" in piece:
            assert piece["index"] not in calls
            function = {"name": piece["function"]["name"], "arguments": ""}
            calls[piece["index"]] = {"id": piece["id"], "type": piece["type"], "function": function}
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    text = "".join(delta.get("content") or "" for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    said: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    said |= {"reasoning_content": reasoning} if reasoning else {}
    return said | ({"tool_calls": [calls[index] for index in sorted(calls)]} if calls else {})


def both(client: httpx2.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, which are the same when it is streamed."""
    answer = whole(client, path, body)
    shape = ChatChunk if "chat" in path else TextChunk
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post(path, json=asked), shape)
    assert put_together(chunks, path) == answer["choices"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], answer["usage"])
    choices: list[dict[str, Any]] = answer["choices"]
    return choices


def test_tool_calls(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: CALLS
    [choice] = both(client, "/v1/chat/completions", CHAT)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {"role": "assistant", "content": "Let me see.", "tool_calls": CALLED}
    server.pieces = lambda _: CALLS[2:]
    [choice] = both(client, "/v1/chat/completions", CHAT)
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": CALLED}


def test_tool_calls_as_a_stream_says_them(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: CALLS
    chunks = events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}), ChatChunk)
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    other = {"index": 1, "id": "call_2", "type": "function", "function": {"name": "run", "arguments": '{"b": 2}'}}
    pieces = [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Let me "},
        {"content": "see."},
        {"tool_calls": [first]},
        *({"tool_calls": [piece]} for piece in pieces),
        {"tool_calls": [other]},
        {},
    ]


def test_each_call_has_a_chunk_of_its_own_however_slowly_a_client_reads(server: Running, client: httpx2.Client) -> None:
    # OpenAI's own client loses all but the first call of a chunk, and the last of one that ends the choice.
    calls = [CallDelta(index, "{}", f"call_{index}", "look") for index in range(2)]
    server.pieces = lambda _: [Delta(0, "So: ", "tool_calls", Usage(5, 4), Aside("Hm", calls))]
    chunks = events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}), ChatChunk)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [sorted(choice["delta"]) for choice in choices] == [
        ["content", "role"],
        ["content", "reasoning_content"],
        ["tool_calls"],
        ["tool_calls"],
        [],
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["tool_calls"]


def test_reasoning_comes_apart_from_the_answer(server: Running, client: httpx2.Client) -> None:
    usage = Usage(5, 4, reasoning=2)
    server.pieces = lambda _: [aside(reasoning="Hm"), aside(reasoning=", 4?"), "It is ", Delta(0, "4.", "stop", usage)]
    [choice] = both(client, "/v1/chat/completions", CHAT)
    assert choice["message"] == {"role": "assistant", "content": "It is 4.", "reasoning_content": "Hm, 4?"}
    answer = whole(client, "/v1/chat/completions", CHAT)
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    server.pieces = lambda _: [aside(reasoning="Hm", finish="length")]
    [choice] = both(client, "/v1/chat/completions", CHAT)
    assert choice["message"] == {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    assert choice["finish_reason"] == "length"


HALVES = "é".encode()
SCORED: Said = [
    aside(" a", scores=[scored(" a", -0.5, (" a", -0.5), (" b", -1.5))]),
    aside("", scores=[scored(HALVES[:1], -1.0, ("xyz", -0.25))]),
    aside("é", scores=[scored(HALVES[1:], -float("inf"), ("w", -0.125))]),
    aside("", finish="stop", scores=[scored("</s>", -2.0, ("</s>", -2.0))]),
]


def test_log_probabilities_as_openai_says_those_of_chats(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: SCORED
    [choice] = both(client, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2})
    first, *_, half, last = choice["logprobs"]["content"]
    space = {"token": " a", "logprob": -0.5, "bytes": [32, 97]}
    assert first == {**space, "top_logprobs": [space, {"token": " b", "logprob": -1.5, "bytes": [32, 98]}]}
    assert half == {
        "token": "�",
        "logprob": -9999.0,
        "bytes": [HALVES[1]],
        "top_logprobs": [{"token": "w", "logprob": -0.125, "bytes": [119]}],
    }
    assert last["token"] == "</s>"
    assert len(choice["logprobs"]["content"]) == 4


def test_log_probabilities_by_token_ids(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: SCORED
    [choice] = both(client, "/v1/chat/completions", {**CHAT, "logprobs": 2})
    assert choice["logprobs"] == {
        "token_logprobs": [-0.5, -1.0, -9999.0, -2.0],
        "tokens": [2, 1, 1, 4],
        "top_logprobs": [
            [{"id": 2, "token": " a", "logprob": -0.5}, {"id": 2, "token": " b", "logprob": -1.5}],
            [{"id": 3, "token": "xyz", "logprob": -0.25}],
            [{"id": 1, "token": "w", "logprob": -0.125}],
            [{"id": 4, "token": "</s>", "logprob": -2.0}],
        ],
    }


def test_log_probabilities_of_a_text(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: SCORED
    [choice] = both(client, "/v1/completions", {**TEXT, "logprobs": 2})
    assert choice["text"] == " aé"
    assert choice["logprobs"] == {
        "tokens": [" a", "bytes:\\xc3", "bytes:\\xa9", "</s>"],
        "token_logprobs": [-0.5, -1.0, -9999.0, -2.0],
        "top_logprobs": [
            {" a": -0.5, " b": -1.5},
            {"xyz": -0.25, "bytes:\\xc3": -1.0},
            {"w": -0.125, "bytes:\\xa9": -9999.0},
            {"</s>": -2.0},
        ],
        "text_offset": [0, 2, 2, 3],
    }


def test_log_probabilities_of_a_prompt_come_first(server: Running, client: httpx2.Client) -> None:
    prompt = [scored("<s>", None), scored("Ü", -1.0, ("U", -0.5)), scored("ber", -0.5, ("ber", -0.5))]
    server.pieces = lambda _: [
        aside("Über", prompt=prompt),
        aside(" al", scores=[scored(" al", -0.25)]),
        aside("les", finish="length", scores=[scored("les", -0.75)]),
    ]
    [choice] = both(client, "/v1/completions", {**TEXT, "logprobs": 0, "echo": True})
    assert choice["text"] == "Über alles"
    assert choice["logprobs"] == {
        "tokens": ["<s>", "Ü", "ber", " al", "les"],
        "token_logprobs": [None, -1.0, -0.5, -0.25, -0.75],
        "top_logprobs": [None, {"U": -0.5, "Ü": -1.0}, {"ber": -0.5}, {" al": -0.25}, {"les": -0.75}],
        "text_offset": [0, 0, 1, 4, 7],
    }


def test_the_likeliest_of_equal_strings_is_named(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: [aside("x", scores=[scored("x", -3.0, ("y", -0.5), ("x", -1.0), ("y", -2.0))])]
    [choice] = both(client, "/v1/completions", {**TEXT, "logprobs": 3})
    assert list(choice["logprobs"]["top_logprobs"][0].items()) == [("y", -0.5), ("x", -1.0)]


def test_without_any_token_there_are_empty_log_probabilities(server: Running, client: httpx2.Client) -> None:
    server.pieces = lambda _: [""]
    [choice] = whole(client, "/v1/completions", {**TEXT, "logprobs": 1})["choices"]
    assert choice["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    [choice] = whole(client, "/v1/chat/completions", {**CHAT, "logprobs": True})["choices"]
    assert choice["logprobs"] == {"content": []}


def test_several_answers_to_several_prompts(server: Running, client: httpx2.Client) -> None:
    counts: dict[str, int] = {}

    def script(generation: Generation) -> Said:
        prompt = getattr(generation.prompt, "text", "")
        counts[prompt] = counts.get(prompt, 0) + 1
        return [f"{prompt}{(counts[prompt] - 1) % 3}", Delta(0, "", "stop", Usage(len(prompt), 2, cached=1))]

    server.pieces = script
    choices = both(client, "/v1/completions", {**TEXT, "prompt": ["a", "bb"], "n": 3})
    assert [choice["text"] for choice in choices] == ["a0", "a1", "a2", "bb0", "bb1", "bb2"]
    usage = whole(client, "/v1/completions", {**TEXT, "prompt": ["a", "bb"], "n": 3})["usage"]
    # Each prompt counts once, however many answers there are to it.
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 12, 15)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


WORDS = ["", "a", " b", "\n", "é", "🎈", '"', "</s>", "<", "\\"]


def rambling(seed: int) -> Said:
    """Anything that a model might say, in any pieces."""
    draw = random.Random(seed)
    said: Said = []
    for _ in range(1 + draw.randrange(3)):
        word = draw.choice(WORDS)
        said.append(aside(reasoning=word, scores=[scored(word, -draw.random(), (draw.choice(WORDS), -0.5))]))
    for _ in range(draw.randrange(6)):
        word = draw.choice(WORDS)
        said.append(aside(word, scores=[scored(word, -draw.random())]) if draw.random() < 0.5 else word)
    calls = draw.randrange(3)
    for index in range(calls):
        said.append(aside(calls=[CallDelta(index, "", f"call_{index}", "f")]))
        said.extend(aside(draw.choice(WORDS), calls=[CallDelta(index, part)]) for part in ('{"a":', " 1", "}"))
    said.append(Delta(0, draw.choice(WORDS), "tool_calls" if calls else draw.choice(["stop", "length"])))
    return said


@pytest.mark.parametrize("seed", range(30))
def test_streamed_and_in_one_piece_it_is_the_same(shared_server: Running, shared: httpx2.Client, seed: int) -> None:
    said = rambling(seed)
    shared_server.pieces = lambda _: said
    for logprobs in (None, True, 2):
        both(shared, "/v1/chat/completions", {**CHAT, "logprobs": logprobs})
    text_only = [piece for piece in said if isinstance(piece, str) or not (piece.aside and piece.aside.calls)]
    shared_server.pieces = lambda _: text_only
    both(shared, "/v1/completions", {**TEXT, "logprobs": 1})


def test_a_slow_reader_gets_all_that_is_beside_the_text(server: Running, client: httpx2.Client) -> None:
    count = 5_000
    server.pieces = lambda _: [
        *(aside("x" * 100, scores=[scored("x" * 100, -0.5)]) for _ in range(count)),
        aside(calls=[CallDelta(0, "", "call_1", "f")]),
        *(aside(calls=[CallDelta(0, "y" * 100)]) for _ in range(count)),
        Delta(0, "", "tool_calls"),
    ]
    asked = {**CHAT, "stream": True, "logprobs": True}
    with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        server.until(lambda: not server.workers.workers["org/scribe"].running)
        body = response.read()
    chunks = events(httpx2.Response(200, content=body), ChatChunk)
    assert len(chunks) < count
    [choice] = put_together(chunks, "/v1/chat/completions")
    assert choice["message"]["content"] == "x" * 100 * count
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "y" * 100 * count}
    assert len(choice["logprobs"]["content"]) == count
