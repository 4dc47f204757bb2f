"""The middleware around all routes: request ids, access log, and the one place where an exception becomes an answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_roster.errors import AdapterIncompatible, Draining, InternalError, RosterError
from mlx_roster.logs import fields, written
from mlx_roster.metrics import Account
from mlx_roster.server import errors, logbook, sse
from mlx_roster.server.callers import told
from mlx_roster.server.disconnect import ClientGone
from mlx_roster.server.exchange import KEY, Exchange, Refusal
from mlx_roster.server.openai.fields import shown

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(rb"[\x21-\x7e]([\x20-\x7e]{0,510}[\x21-\x7e])?")
#: What the access log says of a request whose client left before its answer was through (nginx's word for it).
CLIENT_GONE = 499


class Boundary:
    """Wraps the router, inside Starlette's own error middleware, which has nothing left to do. Nothing passes it."""

    def __init__(self, app: ASGIApp, ended: Callable[[Account], None] = lambda _: None) -> None:
        self.app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(_request_id(scope), Account(time.monotonic()))
        exchange.add_header("x-request-id", exchange.request_id)

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if exchange.ignored:
                    exchange.add_header("x-roster-ignored", shown(exchange.ignored))
                message["headers"] = [*message["headers"], *exchange.headers]
            else:
                exchange.complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._serve(exchange, scope, receive, sender)
        finally:
            _close(exchange, Refusal.of(scope))
            self._ended(exchange.account)
            if logger.isEnabledFor(level := logbook.level(exchange.account, scope)):
                about = logbook.facts(exchange, scope)
                logger.log(level, "%s", logbook.line(about), extra=fields(**about))

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            # Shutdown has run out of patience. What is cut short says so before the connection goes.
            # Nothing else runs in this task, and uvicorn would log the cancellation, its own, as a failure of ours.
            await _fail(Draining("the server is shutting down"), exchange, send)
        except ClientGone:
            exchange.client_gone = True
        except RosterError as error:
            if errors.answer(error) is None:
                _say(exchange, logging.ERROR, "an error that is not for clients", error)
                error = _internal(exchange)
            await _fail(error, exchange, send)
        except Exception as error:  # noqa: BLE001  the ASGI boundary: a bug in one request must not look like a crash
            _say(exchange, logging.ERROR, "it failed", error)
            await _fail(_internal(exchange), exchange, send)


async def _fail(error: RosterError, exchange: Exchange, send: Send) -> None:
    """Answer with `error`, as an event where the response is a stream that has begun."""
    if exchange.complete or (exchange.status is not None and not exchange.streaming):
        # Nothing more can be said. Of a JSON body that is half out, uvicorn cuts the connection.
        return
    body = errors.body(told(exchange.caller, error))
    exchange.code = error.code
    if isinstance(error, AdapterIncompatible):
        # Whoever runs the server can mend it, and sees only the log. Of a long list, the beginning will do.
        _say(exchange, logging.WARNING, " ".join(error.message[:400].split()))
    if exchange.status is not None:
        await send({"type": "http.response.body", "body": sse.event(body) + sse.DONE, "more_body": False})
        return
    found = errors.answer(error)
    assert found is not None
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        *errors.headers(error),
    ]
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _say(exchange: Exchange, level: int, what: str, error: Exception | None = None) -> None:
    about = fields(request_id=exchange.request_id)
    logger.log(level, "request %s: %s", written(exchange.request_id), what, exc_info=error, extra=about)


def _internal(exchange: Exchange) -> InternalError:
    return InternalError(f"the server failed; its log says why, under request id {exchange.request_id}")


def _request_id(scope: Scope) -> str:
    """The client's own, where it is printable ASCII of at most 512 characters; else a new one."""
    if (refusal := Refusal.of(scope)) is not None:
        return refusal.request_id
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return f"req-{uuid.uuid4().hex}"


def _close(exchange: Exchange, refusal: Refusal | None) -> None:
    """Say in the account how it ended."""
    account = exchange.account
    account.ended = time.monotonic()
    account.caller = exchange.caller.name
    if refusal is not None:
        # To the application it looks as if the client had left. It has an answer.
        account.status, account.code = refusal.status, refusal.code
        return
    # Of a response that has begun, the status alone would hide that the client saw only part of it.
    account.status = CLIENT_GONE if exchange.client_gone or exchange.status is None else exchange.status
    account.code = exchange.code
