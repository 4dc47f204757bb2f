"""A client that only sends what no server should be sent, and leaves in the middle of it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from bench.chaos.ledger import Ledger
from bench.chaos.server import Server

#: Seconds between two of them, at most.
PACE = 0.4

#: How long an answer is waited for, in seconds.
PATIENCE = 60.0

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_CHAT = "/v1/chat/completions"


def _post(path: str, body: bytes, *, length: int | None = None, more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n{more}"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def _field(draw: random.Random) -> bytes:
    """A request with one field that is not as it should be."""
    body: dict[str, object] = {"model": "lark", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    name, value = draw.choice(
        [
            ("messages", []),
            ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://[::1]/"}}]}]),
            ("messages", None),
            ("max_tokens", draw.choice([0, -1, "many", 2**80, 1.5])),
            ("temperature", draw.choice([-1, "hot", 1e400])),
            ("top_logprobs", 3),
            ("logit_bias", {draw.choice(["99999999", "-1", "x"]): 5}),
            ("stop", ["x"] * 10_000),
            ("n", 10_000),
            ("tools", [{}]),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}),
            ("max_token", 5),
            ("model", draw.choice(["../../etc", "org/name", "lark:no-such", "\x00", "x" * 10_000])),
        ]
    )
    return _post(_CHAT, json.dumps(body | {name: value}).encode())


def _noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(1, 2000))


def _cut(draw: random.Random) -> bytes:
    """JSON that breaks off, or is none."""
    body = json.dumps({"model": "lark", "messages": [{"role": "user", "content": "hi"}]}).encode()
    return _post(_CHAT, body[: draw.randrange(len(body))] + draw.randbytes(draw.randint(0, 3)) + b"\xff")


def _deep(draw: random.Random) -> bytes:
    depth = draw.randint(100, 200_000)
    return _post(_CHAT, b'{"messages": ' + b"[" * depth)


def _ids(draw: random.Random) -> bytes:
    prompt = draw.choice([[2**31], [-1], [10**9, 1], [[1], [10**9]], [None], [[]], [1.5]])
    return _post("/v1/completions", json.dumps({"model": "wren", "prompt": prompt, "max_tokens": 1}).encode())


def _elsewhere(draw: random.Random) -> bytes:
    line = draw.choice(
        [
            *("GET /nowhere", "DELETE /v1/models", "PUT /v1/chat/completions", "GET /v1/models/..%2f..%2fetc%2fpasswd"),
            *("BREW /coffee", "GET /" + "x" * 70_000, "GET /v1/models/" + "%00" * 20),
        ]
    )
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


def _headers(draw: random.Random) -> bytes:
    many = "".join(f"x-{number}: {'y' * 100}\r\n" for number in range(draw.choice([500, 5000])))
    return _post(_CHAT, b"{}", more=draw.choice([many, "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n"]))


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _field, _field, _field, _noise, _cut, _deep, _ids, _elsewhere, _headers,
)  # fmt: skip


class Vandal:
    """A `Companion` of a run."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    async def run(self, server: Server, ledger: Ledger) -> None:
        address = urlsplit(server.url)
        assert address.hostname is not None
        while True:
            await asyncio.sleep(self._draw.uniform(0, PACE))
            kind = self._draw.choice(KINDS)
            sent = kind(self._draw)
            answer = await self._one(address.hostname, address.port or 80, sent)
            if answer is not None:
                found = _STATUS.match(answer)
                text = answer.partition(b"\r\n\r\n")[2].decode(errors="replace")
                what = f"bad input {kind.__name__} {sent[:300]!r}"
                ledger.misled(what, None if found is None else int(found[1]), text)

    async def _one(self, host: str, port: int, sent: bytes) -> bytes | None:
        """What was answered. None where nobody waited for it."""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    if self._draw.random() < 0.2:
                        writer.write(sent[: self._draw.randrange(len(sent))])
                        return None
                    writer.write(sent)
                    # Noise may look like the beginning of something.
                    writer.write_eof()
                    return await reader.read()
                finally:
                    writer.close()
        except OSError:
            return b""
