"""The edge towards clients: uvicorn's protocol over httptools, and what it leaves open.

Of `HttpToolsProtocol` this relies on (`tests/server/test_protocol.py` says it as tests):

* It is made with the Config. All parser callbacks are its methods, and what one of them raises comes out of `feed_data`
  as an HttpParserError.
* `connections` has every connection until it is lost, closed ones that still have to be flushed too.
* `_start_asgi_task(cycle, app)` starts a request's task: at once, or when the one before it is answered.
* A cycle writes to its `transport`, by `write`, `close` and `is_closing`; it frames a body only where its
  `chunked_encoding` is None or True, else lets `expected_content_length` bytes pass; its `receive` says disconnect once
  `disconnected` is set.
* `on_response_complete` runs when a response is through, and begins the wait for the next request.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal, cast

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mlx_roster.config import ServerSettings
from mlx_roster.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, RosterError, TooManyConnections
from mlx_roster.logs import fields, written
from mlx_roster.metrics import Account, Metrics
from mlx_roster.server import errors
from mlx_roster.server.body import PACE
from mlx_roster.server.exchange import REFUSED, Exchange, Refusal
from mlx_roster.server.outgoing import Outgoing, Unusual, hold_back_little
from mlx_roster.server.overseer import Watch

logger = logging.getLogger(__name__)

#: A request line and headers together have at most so many bytes, and of these at most so many. So have the trailers.
MAX_HEAD = 64 * 1024
MAX_HEADERS = 128

#: Requests that a client may send ahead of the answer to its first. Hardly any client does.
MAX_AHEAD = 8

#: How long a client that has been refused may go on sending, in seconds: cut at once, it might never see why.
LINGER = 1.0

#: What the access log says of a response that was cut off because nobody read it.
SLOW_READER = "slow_reader"


class EdgeConfig(uvicorn.Config):
    """uvicorn's settings, and ours: looked up anew for each connection, as a reload may change them.

    `connections` is how many there may be at a time, None without a limit. `metrics` is told of those that there are,
    and of what the application never hears of.
    """

    def __init__(
        self,
        app: Any,
        settings: Callable[[], ServerSettings],
        *,
        metrics: Metrics,
        connections: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            app,
            http=Edge,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Whom a request comes from matters to nobody here, so no header can say it either.
            proxy_headers=False,
            **options,
        )
        self.settings = settings
        self.metrics = metrics
        self.max_connections = connections
        self.watch = Watch(settings)


class Edge(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, config: EdgeConfig, server_state: ServerState, app_state: dict[str, Any], **loop: Any) -> None:
        super().__init__(config, server_state, app_state, **loop)
        self._settings = config.settings
        self._watch = config.watch
        self._metrics = config.metrics
        self._limit = config.max_connections
        self._out: Outgoing
        #: What the client has until `_deadline` for: to say anything, to end its headers, to send what remains of a
        #: body that nobody reads, to see that it was refused.
        self._due: Literal["word", "head", "rest", "end"] | None = None
        self._deadline = 0.0
        #: Bytes since the headers began, or since the last of a body: framing and trailers.
        self._overhead = 0
        self._in_head = False
        self._upgrade: bytes | None = None  # the request line of a request that asks for another protocol
        self._refusal: RosterError | None = None
        #: Of the requests that have arrived, the one that is being answered.
        self._current: RequestResponseCycle | None = None
        #: Up to which byte the client has to read next, and since when.
        self._pace: tuple[int, float] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._out = Outgoing(transport)
        self._watch.add(self)
        self._metrics.connected()
        hold_back_little(transport)
        if self._limit is None or len(self.connections) <= self._limit:
            self._await("word", self._settings().header_timeout)
        elif len(self.connections) <= self._limit + self._limit // 8:
            self._refuse(TooManyConnections("this server has as many connections as it can take", retry_after=5.0))
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.discard(self)
        self._metrics.disconnected()
        # uvicorn tells the latest request only, which may be waiting behind this one.
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._due == "end" or self.transport.is_closing():
            return
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidRequest("this is no HTTP/1.1 request"))
        except httptools.HttpParserUpgrade as upgrade:
            self._carry_on(data[upgrade.args[0] :])
        else:
            if self._overhead > MAX_HEAD:
                self._refuse(HeadersTooLarge(f"the headers have more than {MAX_HEAD} bytes"))

    # The parser's

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_head, self._overhead = True, 0
        if self._due != "word":  # the first request's time runs from the connection on
            self._await("head", self._settings().header_timeout)
        self._due = "head"

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer, which would come to stand among the headers
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._raise(HeadersTooLarge(f"there are more than {MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        self._in_head, self._overhead = False, 0
        self._due = None
        self._check_head(len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers))
        if len(self.pipeline) >= MAX_AHEAD:
            self._raise(InvalidRequest("too many requests were sent ahead"))
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._raise(InvalidRequest("this server is no proxy"))
        if self.parser.should_upgrade():
            self._upgrade = b"%s %s HTTP/1.1" % (method, self.url)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade is None:
            self._overhead = 0
            super().on_message_complete()
            # What nobody was going to read is through: the next request may come.
            self._due = None

    def _check_head(self, size: int) -> None:
        if size > MAX_HEAD:
            self._raise(HeadersTooLarge(f"the request line and its headers have more than {MAX_HEAD} bytes"))

    def _raise(self, error: RosterError) -> None:
        # The parser says only that a callback has failed.
        self._refusal = error
        raise error

    def _carry_on(self, rest: bytes) -> None:
        """The parser has stopped for an upgrade that this server does not do: as if it had not been asked for."""
        assert self._upgrade is not None
        lines, self._upgrade = [self._upgrade], None
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(word for word in value.split(b",") if b"close" in word.lower())
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._due = "word"  # the deadline is what it was
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    # A request's task

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._current = cycle
        cycle.transport = self._out
        unusual = cycle.scope["http_version"] != "1.1" or cycle.waiting_for_100_continue
        super()._start_asgi_task(cycle, Unusual(cycle, app) if unusual else app)

    def on_response_complete(self) -> None:
        self.timeout_keep_alive = self._settings().idle_timeout  # type: ignore[assignment]  # any number of seconds
        current, self._current = self._current, None
        super().on_response_complete()
        if self._current is None and (self._in_head or (current is not None and current.more_body)):
            self._await("head" if self._in_head else "rest", self._settings().header_timeout)

    def give_up(self) -> None:
        """The server ends. What is not said by now, since the client does not read what came before, never will be."""
        if self._current is not None:
            self.transport.abort()

    # Deadlines

    def _await(self, due: Literal["word", "head", "rest", "end"], seconds: float) -> None:
        self._due, self._deadline = due, self.loop.time() + seconds

    def look(self, now: float, settings: ServerSettings) -> None:
        """To be called every now and then: ends what has taken too long."""
        if self._due is not None and now >= self._deadline:
            self._late(settings)
        waiting = self._out.waiting
        if not waiting:
            self._pace = None
            return
        if self._pace is None or self._out.taken >= self._pace[0]:
            self._pace = (self._out.taken + min(PACE, waiting), now)
        answering = self._current or self.cycle
        exchange = None if answering is None else Exchange.find(cast("Scope", answering.scope))
        if now - self._pace[1] > settings.write_timeout:
            self._cut(exchange, f"took next to nothing for {settings.write_timeout:g} s")
        elif exchange is not None and exchange.streaming and waiting + exchange.unread > settings.write_buffer:
            self._cut(exchange, f"left {waiting + exchange.unread} bytes waiting")

    def _late(self, settings: ServerSettings) -> None:
        if self._due == "head" and self._current is not None:
            # It has sent part of the next request already, and perhaps could send no more.
            self._deadline += settings.header_timeout
        elif self._due == "head":
            self._refuse(RequestTimeout(f"the headers were not whole after {settings.header_timeout:g} s"))
        elif self._due == "end":
            self.transport.abort()
        else:
            self._due = None
            self.transport.close()

    def _cut(self, exchange: Exchange | None, why: str) -> None:
        if exchange is not None:
            exchange.code = SLOW_READER
        name = None if exchange is None else exchange.request_id
        about = fields(event="cut_off", request_id=name)
        logger.info("cut off request %s: its client %s", written(name or "-"), why, extra=about)
        self.transport.abort()

    def _refuse(self, error: RosterError) -> None:
        """Answer what is no request that an application could answer, and close."""
        if self._due == "rest" or not self._may_refuse():
            # Another answer has been given or is under way, and this would come to stand in the middle of it.
            self.transport.abort()
            return
        found, body = errors.answer(error), errors.body(error)
        assert found is not None
        request_id = self._accounted(found.status, error.code)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode("ascii")),
            *errors.headers(error),
        ]
        if (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        status = b"HTTP/1.1 %d %s" % (found.status, HTTPStatus(found.status).phrase.encode("ascii"))
        lines = [status, *(name + b": " + value for name, value in [*self.server_state.default_headers, *headers])]
        self._out.write(b"\r\n".join([*lines, b"", body]))
        self.transport.write_eof()
        self._await("end", LINGER)

    def _accounted(self, status: int, code: str) -> str:
        """See to it that a refusal is logged and counted, once. Returns its request id."""
        request_id = f"req-{uuid.uuid4().hex}"
        if self._current is not None:
            # The application has it in hand, or will have, and says how it ends.
            scope = cast("Scope", self._current.scope)
            exchange = Exchange.find(scope)
            refusal = Refusal(request_id if exchange is None else exchange.request_id, status, code)
            scope[REFUSED] = refusal
            return refusal.request_id
        now = time.monotonic()
        self._metrics.ended(Account(now, ended=now, status=status, code=code))
        about = fields(event="request", request_id=request_id, status=status, code=code)
        logger.info("- - %d %s - id=%s", status, code, request_id, extra=about)
        return request_id

    def _may_refuse(self) -> bool:
        """Whether nothing has to be answered but what is refused: of that, the application hears no more."""
        current = self._current
        if current is None:
            return True
        if current is not self.cycle or not current.more_body or current.response_started:
            return False
        current.disconnected = True
        current.message_event.set()
        return True
