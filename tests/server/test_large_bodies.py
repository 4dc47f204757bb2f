"""What is cheap to send and dear to read: refused where it is too much, else read beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from mlx_roster.core import Alternative, Aside, Delta, Scored
from mlx_roster.errors import InvalidJSON, InvalidRequest, QueueFull, RequestTooLarge
from mlx_roster.server.body import MAX_PARTS, MAX_VALUES, object_of
from mlx_roster.server.boundary import Boundary
from mlx_roster.server.openai.chat import chat_completions
from mlx_roster.server.openai.desk import SMALL, Desk
from mlx_roster.server.openai.parse import parse
from mlx_roster.server.openai.schema import ChatRequest
from tests.server.harness import assert_error, running
from tests.server.test_accounting import Rig, scope, with_rig

T = TypeVar("T")

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "atlas", "messages": [USER]}


def field(item: bytes, times: int) -> bytes:
    """An object with a field of so many items."""
    return b'{"a":[' + b",".join([item] * times) + b"]}"


@pytest.mark.parametrize("item", [b"[]", b"{}", b'""', b'"a, [b] \\" {"', b"[1]"])
def test_parts_are_counted(item: bytes) -> None:
    with pytest.raises(RequestTooLarge, match=str(MAX_PARTS)):
        object_of(field(item, MAX_PARTS))
    assert len(object_of(field(item, MAX_PARTS - 10))["a"]) == MAX_PARTS - 10


def test_values_are_counted() -> None:
    with pytest.raises(RequestTooLarge, match=str(MAX_VALUES)):
        object_of(field(b"1", MAX_VALUES + 1))
    assert len(object_of(field(b"1", MAX_VALUES - 10))["a"]) == MAX_VALUES - 10


@pytest.mark.parametrize("text", ["[[{,", '\\" [', "\\\\", '"', "\n[", "\u00e9["])
def test_what_is_in_a_string_is_no_part(text: str) -> None:
    long = text * (2 * MAX_VALUES // len(text))
    assert object_of(json.dumps({"a": long, "b": [1]}).encode()) == {"a": long, "b": [1]}


@pytest.mark.parametrize("end", [b"", b'"', b"\\", b'"\\'])
def test_what_ends_in_a_string_is_no_json_all_the_same(end: bytes) -> None:
    with pytest.raises(InvalidJSON, match="not valid JSON"):
        object_of(b'{"a":"' + b"x" * MAX_PARTS + end)


def test_an_object_that_takes_no_other_fields_is_not_searched_for_all_of_them() -> None:
    body = {**CHAT, "response_format": {"type": "text", **{f"x{number}": 1 for number in range(1000)}}}
    with pytest.raises(InvalidRequest, match="response_format must have at most 128 entries"):
        parse(ChatRequest, body, strict_fields=False, n_limit=8)


def test_what_is_large_is_done_beside_the_event_loop() -> None:
    async def main() -> None:
        turned = threading.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        assert await Desk().done(SMALL + 1, lambda: turned.wait(20))
        assert await Desk().done(SMALL, threading.get_ident) == threading.get_ident()

    asyncio.run(main())


def test_a_large_body_is_answered_as_any_other() -> None:
    with running() as server, server.client() as client:
        messages = [{"role": "user", "content": "x" * SMALL}, USER]
        assert client.post("/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200
        assert len(server.generations[-1].prompt.messages) == 2  # type: ignore[union-attr]
        wrong = {**CHAT, "messages": [{"role": "nobody", "content": "x" * SMALL}]}
        assert_error(client.post("/v1/chat/completions", json=wrong), 400, "invalid_request", "messages[0].role")
        much = {**CHAT, "messages": [{**USER, "x": [[]] * MAX_PARTS}]}
        assert_error(client.post("/v1/chat/completions", json=much), 413, "request_too_large")


class NotedDesk(Desk):
    """Notes how much it is given to do at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def done(self, size: int, work: Callable[[], T]) -> T:
        self.sizes.append(size)
        return await super().done(size, work)


@pytest.mark.parametrize(("tokens", "large"), [(3, False), (100, True)])
def test_a_large_answer_is_written_beside_the_event_loop(tokens: int, large: bool) -> None:
    async def body(rig: Rig) -> None:
        desk, sent, incoming = NotedDesk(), list[Any](), asyncio.Queue[Any]()
        asked = json.dumps({**CHAT, "logprobs": True, "top_logprobs": 20}).encode()
        incoming.put_nowait({"type": "http.request", "body": asked, "more_body": False})

        async def send(message: Any) -> None:
            sent.append(message)

        await Boundary(chat_completions(rig.registry, rig._gaps, desk))(scope(), incoming.get, send)
        said = json.loads(sent[1]["body"])["choices"][0]["logprobs"]["content"]
        assert [len(token["top_logprobs"]) for token in said] == [20] * tokens
        assert desk.sizes[0] == len(asked)
        assert (desk.sizes[1] > SMALL) == large

    scored = Scored(1, b"a", -1.0, [Alternative(2, b"b", -2.0)] * 20)
    with_rig(body, lambda _: [Delta(0, "a", aside=Aside(scores=[scored])) for _ in range(tokens)])


def test_there_is_room_for_so_many_bytes_of_bodies() -> None:
    desk = Desk(room=100)
    with desk.place("a") as a, desk.place("b") as b, desk.place(None) as anybody:
        a(30)
        a(20)
        with pytest.raises(QueueFull):
            a(1)  # half of it is for others
        b(40)
        with pytest.raises(QueueFull):
            anybody(11)
        anybody(10)
    with desk.place(None) as anybody:
        anybody(100)


def test_a_body_has_its_room_until_its_request_is_over() -> None:
    async def body(rig: Rig) -> None:
        app = Boundary(chat_completions(rig.registry, rig._gaps, Desk(room=200)), rig.accounts.append)

        async def ask(content: str) -> None:
            incoming = asyncio.Queue[Any]()
            said = json.dumps({**CHAT, "messages": [{"role": "user", "content": content}]}).encode()
            incoming.put_nowait({"type": "http.request", "body": said, "more_body": False})

            async def send(message: Any) -> None:
                if message["type"] == "http.response.body":
                    await asyncio.sleep(0)

            await app(scope(), incoming.get, send)

        await asyncio.gather(ask("x" * 30), ask("x" * 30), ask("x" * 30))
        assert sorted(account.code or "" for account in rig.accounts) == ["", "", "queue_full"]
        await ask("x" * 100)
        assert rig.accounts[-1].status == 200

    with_rig(body)
