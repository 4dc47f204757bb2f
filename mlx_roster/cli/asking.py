"""A running server, as its clients see it: its models, and answers as they are written. For `mlx-roster chat`."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from mlx_roster.cli import shapes
from mlx_roster.cli.conversation import Listed
from mlx_roster.cli.remote import ANSWER_TIMEOUT, CONNECT_TIMEOUT, Refused, Unreachable, lines

#: How long a stream may be silent, in seconds. A server that has nothing to say yet says so every few seconds.
SILENCE = 120.0

_NO_ANSWER = (httpx2.RequestError, UnicodeError)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing yet, and why: `loading 43%`."""

    words: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The next words of the answer, or of the reasoning before it."""

    text: str
    reasoning: bool = False


@dataclass(slots=True)
class Facts:
    """What is known of an answer besides its words."""

    model: str | None = None
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    #: Request fields that the server did not heed, in its words.
    ignored: str | None = None
    load_ms: float = 0.0


class Server:
    """The OpenAI routes at `url`, which may end with /v1 or not. Use as a context manager.

    Its methods raise Refused, and Unreachable where nobody answers, or somebody who speaks another language.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = f"{(url if '://' in url else f'http://{url}').rstrip('/').removesuffix('/v1')}/v1"
        try:
            # Not through a proxy of the environment: most servers are on this machine.
            self._client = httpx2.Client(
                base_url=self.url,
                headers={} if not key else {"authorization": f"Bearer {key}"},
                timeout=httpx2.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
                trust_env=False,
            )
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise self._unreachable() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def models(self) -> list[Listed]:
        """All that there are."""
        listed = self._request("GET", "/models").get("data")
        if not isinstance(listed, list):
            raise self._unreachable()
        return [_listed(entry) for entry in listed if isinstance(entry, dict)]

    def model(self, name: str) -> Listed:
        """One of them, by id or alias."""
        return _listed(self._request("GET", f"/models/{quote(name, safe='/:')}"))

    def whole(self, request: dict[str, Any]) -> dict[str, Any]:
        """The whole response to a chat completion, once it is there."""
        forever = httpx2.Timeout(None, connect=CONNECT_TIMEOUT)
        return self._request("POST", "/chat/completions", json=request, timeout=forever)

    def pieces(self, request: dict[str, Any], facts: Facts) -> Generator[Waiting | Piece, None, None]:
        """The answer to a chat completion as it comes; what else there is to know is put into `facts` meanwhile.

        To be closed when it is not read to its end: that ends the generation, too.
        """
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        patience = httpx2.Timeout(SILENCE, connect=CONNECT_TIMEOUT)
        begun = False
        try:
            with self._client.stream("POST", "/chat/completions", json=body, timeout=patience) as response:
                if not response.is_success:
                    raise self._refused(_decoded(response.read()))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise self._unreachable()
                begun = True
                facts.ignored = response.headers.get("x-roster-ignored")
                facts.load_ms = _number(response.headers.get("x-roster-load-ms"))
                yield from self._said(response.iter_bytes(), facts)
        except _NO_ANSWER as error:
            if begun:
                raise Unreachable(f"the server at {self.url} has broken off") from error
            raise self._unreachable() from error

    def _said(self, chunks: Iterator[bytes], facts: Facts) -> Iterator[Waiting | Piece]:
        for line in lines(chunks):
            if line.startswith(":"):
                yield Waiting(line[1:].strip())
            elif line == "data: [DONE]":
                return
            elif line.startswith("data:"):
                chunk = _decoded(line[5:])
                if not isinstance(chunk, dict) or "error" in chunk:
                    raise self._refused(chunk)
                yield from _told(chunk, facts)
        raise Unreachable(f"the server at {self.url} has broken off")

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except _NO_ANSWER as error:
            raise self._unreachable() from error
        body = _decoded(response.content)
        if not response.is_success or not isinstance(body, dict):
            raise self._refused(body)
        return body

    def _refused(self, body: Any) -> Refused | Unreachable:
        return Refused(body) if shapes.fits(body, shapes.Error) else self._unreachable()

    def _unreachable(self) -> Unreachable:
        return Unreachable(
            f"no server answers at {self.url}\n"
            "start one in another terminal (mlx-roster serve, or mlx-roster demo), or say where it is with --url"
        )


def _told(chunk: dict[str, Any], facts: Facts) -> Iterator[Piece]:
    """What one chunk says."""
    if isinstance(model := chunk.get("model"), str):
        facts.model = model
    if isinstance(usage := chunk.get("usage"), dict):
        facts.usage = usage
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if isinstance(finish := choice.get("finish_reason"), str):
            facts.finish = finish
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        for key in ("reasoning_content", "content"):
            if isinstance(text := delta.get(key), str) and text:
                yield Piece(text, reasoning=key != "content")


def _listed(entry: dict[str, Any]) -> Listed:
    parent, roster = entry.get("parent"), entry.get("roster")
    aliases = roster.get("aliases") if isinstance(roster, dict) else None
    return Listed(
        str(entry.get("id")),
        parent if isinstance(parent, str) else None,
        tuple(map(str, aliases)) if isinstance(aliases, list) else (),
    )


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _decoded(text: str | bytes) -> Any:
    """JSON; None where it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
