"""A request's body: read up to a limit, then decoded. Everything about it that is refused is refused here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from mlx_roster.config import ServerSettings, format_bytes
from mlx_roster.errors import InvalidJSON, InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedMediaType
from mlx_roster.server.disconnect import ClientGone
from mlx_roster.server.openai.fields import shown

#: Bytes of a body that holds a few flags at most.
_FLAGS_LIMIT = 64 * 1024

#: In each `body_timeout` and `write_timeout` a client must send or take so many bytes, or all there are: with less it
#: would keep its place for hours. 16 KiB in 30 s are 550 bytes a second.
PACE = 16 * 1024

#: A body has at most so many strings (the names of fields too), arrays and objects, and so many values of any kind.
#: Thousands of messages with all their tool calls are some ten thousand parts; a prompt as numbers is one value each.
MAX_PARTS = 2**17
MAX_VALUES = 2**20

# What is between two strings, and the string after it.
_OUTSIDE_STRINGS = re.compile(rb'([^"]*+)(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?)?', re.DOTALL)

_AT_BYTE = re.compile(r" \(byte (\d+)\)$")

# msgspec takes a body that ends with this for one that lacks the other half.
_HALF_A_PAIR = re.compile(rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})(?=[^\\]{1,5}$)", re.DOTALL)


async def read_body(
    scope: Scope, receive: Receive, settings: ServerSettings, came: Callable[[int], None] = lambda size: None
) -> bytes:
    """The body that the client sent as JSON, for `object_of`. `came` is told the size of each piece.

    Raises what `came` raises, UnsupportedMediaType, RequestTooLarge (without reading the rest), RequestTimeout or
    ClientGone.
    """
    headers = Headers(scope=scope)
    _check_media_type(headers)
    length, limit = headers.get("content-length", ""), settings.request_limit
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    return await _read(receive, limit, settings.body_timeout, came)


async def read_flags(
    scope: Scope, receive: Receive, settings: ServerSettings, known: Collection[str]
) -> dict[str, bool]:
    """The flags of a request that needs none: from its query, or from a JSON object as its body, which wins.

    Raises InvalidRequest for any but the `known` ones and for what is neither true nor false; else as `read_body` and
    `object_of`.
    """
    flags: dict[str, Any] = {}
    query = scope["query_string"].decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True):
        flags[name] = {"true": True, "false": False}.get(value, value)
    raw = await _read(receive, _FLAGS_LIMIT, settings.body_timeout)
    if raw:
        _check_media_type(Headers(scope=scope))
        flags |= object_of(raw)
    for name, value in flags.items():
        if name not in known:
            there = f"those there are: {', '.join(known)}" if known else "it takes none"
            raise InvalidRequest(f"{shown([name])} is not a field of this route; {there}", param=shown([name]))
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} must be true or false", param=name)
    return flags


def object_of(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises InvalidJSON, RequestTooLarge or InvalidRequest."""
    body = decode(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return body


def decode(raw: bytes) -> Any:
    """Any JSON value. Raises InvalidJSON, with the place where it is wrong, and RequestTooLarge for too many parts."""
    _check_parts(raw)
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise InvalidJSON("the request body is not valid UTF-8") from error
    except msgspec.DecodeError as error:
        raise InvalidJSON(f"the request body is not valid JSON: {_placed(str(error), raw)}") from error
    except RecursionError as error:
        raise InvalidJSON("the request body is nested too deeply") from error


def _check_parts(raw: bytes) -> None:
    # In eight megabytes there may be millions of empty arrays: what is cheap to send takes minutes to look at, and
    # gigabytes to hold.
    if len(raw) <= MAX_PARTS:
        return
    parts = values = 0
    for outside in _OUTSIDE_STRINGS.finditer(raw):
        opened = outside[1].count(b"[") + outside[1].count(b"{")
        parts += opened + 1
        values += opened + outside[1].count(b",")
        if parts > MAX_PARTS:
            raise RequestTooLarge(f"the request body has more than {MAX_PARTS} strings, arrays and objects")
        if values > MAX_VALUES:
            raise RequestTooLarge(f"the request body has more than {MAX_VALUES} values")


def _check_media_type(headers: Headers) -> None:
    # Also when it is missing: a web page may post text, a form or a body of no type at all to a server on
    # localhost without asking, but JSON only after a preflight.
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        sent = f"not {media_type[:100]!r}" if media_type else "but none was sent"
        raise UnsupportedMediaType(f"the content type must be application/json, {sent}: add the header "
                                   "'Content-Type: application/json'")  # fmt: skip
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"the content encoding {encoding[:100]!r} is not supported: send the body as it is")


async def _read(
    receive: Receive, limit: int, patience: float, came: Callable[[int], None] = lambda size: None
) -> bytes:
    """The whole body. In each `patience` seconds PACE bytes of it have to come, or its end."""
    loop = asyncio.get_running_loop()
    chunks: list[bytes] = []
    size, kept = 0, 0
    deadline = loop.time() + patience
    more = True
    while more:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise RequestTimeout(f"less than {PACE // 1024} KiB of the body came within {patience:g} s") from error
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        came(len(chunk))
        chunks.append(chunk)
        if size - kept >= PACE:
            kept, deadline = size, loop.time() + patience
    return b"".join(chunks)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is larger than this server's limit of {format_bytes(limit)}")


def _placed(message: str, raw: bytes) -> str:
    """msgspec's message with line and column in place of its byte offset, which nobody can count to."""
    message = message.removeprefix("JSON is malformed: ")
    match = _AT_BYTE.search(message)
    if match is not None:
        return f"{message[: match.start()]} {_line_and_column(raw, int(match[1]))}"
    if "truncated" not in message:
        return message[:200]
    if half := _HALF_A_PAIR.search(raw, max(0, len(raw) - 64)):
        return f"unexpected end of escaped utf-16 surrogate pair {_line_and_column(raw, half.end(1))}"
    return f"it ends too early, after {len(raw)} bytes"


def _line_and_column(raw: bytes, end: int) -> str:
    before = raw[:end]
    line = before.count(b"\n") + 1
    column = len(before) - before.rfind(b"\n")
    return f"(line {line}, column {column})"
