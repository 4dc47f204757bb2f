"""A running server, as its clients see it: its models, and answers as they are written. For `mlx-roster chat`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from urllib.parse import quote

import httpx2

from mlx_roster.cli import shapes
from mlx_roster.cli.conversation import Listed
from mlx_roster.cli.remote import CONNECT_TIMEOUT, NO_ANSWER, Caller, Refused, Unreachable, decoded, lines

#: How long a stream may be silent, in seconds. A server that has nothing to say yet says so every few seconds.
SILENCE = 120.0


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


class Foreign(Unreachable):
    """Somebody answers there, and not as OpenAI's API does. The message says so."""


class Server(Caller):
    """The OpenAI routes of a server, which need not be ours.

    Its methods raise Refused, Unreachable where nobody answers, and Foreign where somebody speaks another language.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        super().__init__(url, key, path="/v1")

    def models(self) -> list[Listed]:
        """All that there are."""
        listed = self._request("GET", "/models").get("data")
        if not isinstance(listed, list):
            raise self._foreign()
        return [_listed(entry) for entry in listed if _is_model(entry)]

    def model(self, name: str) -> Listed:
        """One of them, by id or alias."""
        try:
            found = self._request("GET", f"/models/{quote(name, safe='/:')}")
            if not _is_model(found):
                raise self._refused(found)
            return _listed(found)
        except (Refused, Foreign) as error:
            if isinstance(error, Refused) and error.code:
                raise
        # Not all servers have a route for a single one.
        for listed in self.models():
            if listed.id == name:
                return listed
        raise Refused(_complaint(f"{self.url} lists no model {name}"))

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
                kind = response.headers.get("content-type", "")
                if not response.is_success or kind.startswith("application/json"):
                    raise self._refused(decoded(response.read()))
                if not kind.startswith("text/event-stream"):
                    raise self._foreign()
                begun = True
                facts.ignored = response.headers.get("x-roster-ignored")
                facts.load_ms = _number(response.headers.get("x-roster-load-ms"))
                yield from self._said(response.iter_bytes(), facts)
        except NO_ANSWER as error:
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
                chunk = decoded(line[5:])
                if not isinstance(chunk, dict) or "error" in chunk:
                    raise self._refused(chunk)
                yield from _told(chunk, facts)
        if facts.finish is None:
            raise Unreachable(f"the server at {self.url} has broken off")

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except NO_ANSWER as error:
            raise self._unreachable() from error
        body = decoded(response.content)
        if not response.is_success or not isinstance(body, dict):
            raise self._refused(body)
        return body

    def _refused(self, body: Any) -> Refused | Foreign:
        """What an answer comes to that is none. Other servers say what is wrong in other ways."""
        if shapes.fits(body, shapes.Error):
            return Refused(body)
        error = body.get("error", body.get("detail")) if isinstance(body, dict) else None
        words = error.get("message") if isinstance(error, dict) else error
        return Refused(_complaint(words)) if isinstance(words, str) and words else self._foreign()

    def _foreign(self) -> Foreign:
        return Foreign(f"what answers at {self.url} does not speak OpenAI's API; --url says where a server is")

    def _unreachable(self) -> Unreachable:
        return Unreachable(
            f"no server answers at {self.url}\n"
            "start one in another terminal (mlx-roster serve, or mlx-roster demo), or say where it is with --url"
        )


def _complaint(words: str) -> dict[str, Any]:
    return {"error": {"message": words, "code": None}}


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


def _is_model(entry: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)


def _listed(entry: dict[str, Any]) -> Listed:
    parent, roster = entry.get("parent"), entry.get("roster")
    aliases = roster.get("aliases") if isinstance(roster, dict) else None
    return Listed(
        entry["id"],
        parent if isinstance(parent, str) else None,
        tuple(map(str, aliases)) if isinstance(aliases, list) else (),
    )


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
