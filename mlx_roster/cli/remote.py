"""A running server, from the command line: its admin routes over HTTP.

httpx2 comes with huggingface-hub in any case, and has what streams need: a read timeout that can be switched off for
one request, and lines of a body that has not ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

#: How long a server on this machine may take to accept a connection, in seconds. Its answers may take longer than that:
#: a load or a drain takes as long as it takes.
CONNECT_TIMEOUT = 5.0


class Unreachable(Exception):
    """No mlx-roster answers there. The message says where."""


class Refused(Exception):
    """The server said no: `body` is its whole answer, the message its words."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(str(body["error"]["message"]))
        self.body = body


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where `mlx-roster serve` listens in this environment, if its roster does not say otherwise."""
    host, port = environ.get("HOST") or "127.0.0.1", environ.get("PORT") or "8080"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Remote:
    """The admin API at `url`, which may end with the /v1 that clients are given. Use as a context manager."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        try:
            # Not through a proxy of the environment: this is for servers on this machine.
            self._client = httpx2.Client(
                base_url=self._url, timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT), trust_env=False
            )
        except httpx2.InvalidURL as error:
            raise self._unreachable() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def status(self) -> dict[str, Any]:
        """The Overview."""
        return self._ask("GET", "/admin/status")

    def act(self, model: str, verb: str, **flags: bool) -> dict[str, Any]:
        """Do something to a model: its ModelStatus afterwards."""
        return self._ask("POST", f"/admin/models/{quote(model, safe='/:')}/{verb}", flags)

    def reload(self) -> dict[str, Any]:
        return self._ask("POST", "/admin/reload")

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """("state", Overview) first, then ("change", Change) as they happen, until the server ends it."""
        try:
            with self._client.stream("GET", "/admin/events") as response:
                if not response.is_success:
                    response.read()
                    self._object(response)
                yield from _events(response.iter_lines())
        except (httpx2.TransportError, httpx2.UnsupportedProtocol) as error:
            raise self._unreachable() from error

    def _ask(self, method: str, path: str, flags: Mapping[str, bool] | None = None) -> dict[str, Any]:
        try:
            return self._object(self._client.request(method, path, json=flags or None))
        except (httpx2.TransportError, httpx2.UnsupportedProtocol) as error:
            raise self._unreachable() from error

    def _object(self, response: httpx2.Response) -> dict[str, Any]:
        """The JSON object that a mlx-roster answers with. Raises Refused, or Unreachable where it is somebody else."""
        try:
            body = response.json()
        except ValueError as error:
            raise self._unreachable() from error
        if isinstance(body, dict) and response.is_success:
            return body
        if isinstance(body, dict) and isinstance(body.get("error"), dict) and "message" in body["error"]:
            raise Refused(body)
        raise self._unreachable()

    def _unreachable(self) -> Unreachable:
        return Unreachable(f"no mlx-roster answers at {self._url}; is it running? --url says where")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = "message"
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data" and value.startswith("{"):
            body = json.loads(value)
            if "error" in body and name == "message":
                raise Refused(body)
            yield name, body
        elif not line:
            name = "message"
