"""A running server, from the command line: its admin routes over HTTP.

httpx2 comes with huggingface-hub in any case, and has what streams need: a read timeout that can be switched off for
one request, and lines of a body that has not ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from mlx_roster.cli import shapes

#: How long a server on this machine may take to accept a connection, in seconds.
CONNECT_TIMEOUT = 5.0

#: How long it may say nothing once it is asked, in seconds: it may have a large roster to read. A load and a drain take
#: as long as they take.
ANSWER_TIMEOUT = 30.0

#: A host name that is none is a UnicodeError.
NO_ANSWER = (httpx2.RequestError, UnicodeError)

_EVENTS = {"state": shapes.Overview, "change": shapes.Change}


class Unreachable(Exception):
    """No mlx-roster answers there. The message says where."""


class Refused(Exception):
    """The server said no: `body` is its whole answer, the message its words."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(str(body["error"]["message"]))
        self.body = body
        #: Empty where it has none.
        self.code = str(body["error"].get("code") or "")


class Caller:
    """An HTTP client of the server at `url`, which may end with the /v1 that clients are given, with `key` where there
    is one, which is printable ASCII. `patience` is in seconds. Use as a context manager."""

    def __init__(self, url: str, key: str | None = None, *, path: str = "", patience: float = ANSWER_TIMEOUT) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1") + path
        try:
            # Not through a proxy of the environment: most servers are on this machine.
            self._client = httpx2.Client(
                base_url=self.url,
                timeout=httpx2.Timeout(patience, connect=CONNECT_TIMEOUT),
                headers={"authorization": f"Bearer {key}"} if key else {},
                trust_env=False,
            )
        except httpx2.InvalidURL as error:
            raise self._unreachable() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _unreachable(self) -> Unreachable:
        return Unreachable(f"no mlx-roster answers at {self.url}; is it running? --url says where")


class Remote(Caller):
    """The admin API. All its methods raise Refused, and Unreachable also where somebody else answers."""

    _endless = httpx2.Timeout(None, connect=CONNECT_TIMEOUT)

    def status(self) -> dict[str, Any]:
        """The Overview."""
        return self._ask("GET", "/admin/status", shapes.Overview)

    def model(self, model: str) -> dict[str, Any]:
        """Its ModelStatus now. May be asked on another thread while `act` waits."""
        return self._ask("GET", f"/admin/models/{quote(model, safe='/:')}", shapes.Model)

    def act(self, model: str, verb: str, **flags: bool) -> dict[str, Any]:
        """Do something to a model: its ModelStatus afterwards."""
        path = f"/admin/models/{quote(model, safe='/:')}/{verb}"
        waits = verb == "load" or flags.get("wait", False)
        timeout = self._endless if waits else self._client.timeout
        return self._ask("POST", path, shapes.Model, json=flags or None, timeout=timeout)

    def reload(self) -> dict[str, Any]:
        return self._ask("POST", "/admin/reload", shapes.Reload)

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """("state", Overview) first, then ("change", Change) as they happen, until the server ends it."""
        try:
            with self._client.stream("GET", "/admin/events", timeout=self._endless) as response:
                if not response.is_success:
                    raise self._refused(decoded(response.read()))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise self._unreachable()
                yield from self._events(lines(response.iter_bytes()))
        except NO_ANSWER as error:
            raise self._unreachable() from error

    def _events(self, said: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        begun = False
        for name, text in _parsed(said):
            body = decoded(text)
            if name == "message":
                raise self._refused(body)
            shape = _EVENTS.get(name)
            if shape is None or not shapes.fits(body, shape):
                raise self._unreachable()
            yield name, body
            begun = True
        if not begun:
            raise self._unreachable()

    def _ask(self, method: str, path: str, shape: type[object], **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except NO_ANSWER as error:
            raise self._unreachable() from error
        body: dict[str, Any] = decoded(response.content)
        if not response.is_success:
            raise self._refused(body)
        if not shapes.fits(body, shape):
            raise self._unreachable()
        return body

    def _refused(self, body: Any) -> Refused | Unreachable:
        """What an answer that is no success comes to."""
        return Refused(body) if shapes.fits(body, shapes.Error) else self._unreachable()


def lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Whole lines of a stream. Only newlines end one: JSON may hold other separators as they are."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")


def _parsed(said: Iterator[str]) -> Iterator[tuple[str, str]]:
    """The name and the payload of each event."""
    name = "message"
    for line in said:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data" and value.startswith("{"):
            yield name, value
        elif not line:
            name = "message"


def decoded(text: str | bytes) -> Any:
    """JSON; None where it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
