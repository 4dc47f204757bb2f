"""One request, and what has become of it: a whole answer, an error, the client's own leaving, or a loss."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2 as httpx

from bench.chaos.rosters import NAMES
from mlx_roster.demo.facts import facts

#: How long an answer may take in all before the request counts as lost, in seconds.
DEADLINE = 150.0

PROMPTS = tuple(fact.question for fact in facts("atlas")[:5])
LENGTHS = (1, 5, 20, 80, 300)

#: Models that never end by themselves.
ENDLESS = frozenset({"lark", "wren"})

_numbers = count(1)


class Lost(Exception):
    """What came is neither a whole answer nor an error."""


@dataclass(slots=True)
class Request:
    """What is asked. `patience`: when the client hangs up, in seconds; `chunks`: after how many events it does."""

    name: str
    prompt: str
    max_tokens: int
    stream: bool = True
    temperature: float = 0.0
    keep_alive: str | int | None = None
    patience: float | None = None
    chunks: int | None = None
    id: str = field(default_factory=lambda: f"chaos-{next(_numbers):06}")

    @classmethod
    def drawn(cls, draw: random.Random) -> Request:
        """Any request, as often as not from a client that will not wait for its end."""
        name = draw.choices(list(NAMES), weights=[0.3 if name == "scribe" else 1.0 for name in NAMES])[0]
        leaves = draw.random()
        lives: list[str | int | None] = [*[None] * 12, 0, "1s", "5m"]
        return cls(
            name,
            draw.choice(PROMPTS),
            draw.choice(LENGTHS),
            stream=draw.random() < 0.6,
            temperature=draw.choice([0.0, 0.0, 0.8]),
            keep_alive=draw.choice(lives),
            patience=draw.uniform(0, 2) if leaves < 0.12 else None,
            chunks=draw.randint(1, 5) if leaves > 0.9 else None,
        )

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        return body if self.keep_alive is None else body | {"keep_alive": self.keep_alive}


@dataclass(slots=True)
class Outcome:
    """What became of a request. `kind` is "whole", "error" (of `code`), "left" or "lost" (and `why`).

    Times are those of `time.monotonic`; `first` is that of the first event, or of the whole answer.
    """

    kind: str = "lost"
    why: str = ""
    status: int | None = None
    code: str | None = None
    model: str = ""
    text: str = ""
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float = 0.0


async def ask(http: httpx.AsyncClient, request: Request) -> Outcome:
    """Send it and read what comes, until it is whole or the client leaves. Never raises for what the server does."""
    outcome = Outcome()
    hurry = asyncio.timeout(request.patience)
    try:
        async with asyncio.timeout(DEADLINE), hurry:
            await _exchange(http, request, outcome)
    except TimeoutError:
        outcome.kind = "left" if hurry.expired() else "lost"
        outcome.why = "" if hurry.expired() else f"no end within {DEADLINE:.0f} s"
    except (Lost, ValueError, KeyError, IndexError, httpx.HTTPError) as error:
        outcome.kind, outcome.why = "lost", f"{type(error).__name__}: {error}"
    outcome.ended = time.monotonic()
    return outcome


async def _exchange(http: httpx.AsyncClient, request: Request, outcome: Outcome) -> None:
    headers = {"x-request-id": request.id}
    async with http.stream("POST", "/v1/chat/completions", json=request.body, headers=headers) as response:
        outcome.status = response.status_code
        if response.headers.get("x-request-id") != request.id:
            raise Lost(f"the request id was {response.headers.get('x-request-id')!r}")
        if response.status_code != 200:
            _refused(json.loads(await response.aread()), response, outcome)
        elif request.stream:
            await _read_stream(response, request, outcome)
        else:
            answer = json.loads(await response.aread())
            outcome.first = time.monotonic()
            _read_whole(answer, request, outcome)


def _refused(answer: Any, response: httpx.Response, outcome: Outcome) -> None:
    outcome.kind, outcome.code = "error", answer["error"]["code"]
    if response.status_code in (429, 503) and int(response.headers.get("retry-after", 0)) < 1:
        raise Lost(f"{response.status_code} without a Retry-After")


def _read_whole(answer: Any, request: Request, outcome: Outcome) -> None:
    (choice,) = answer["choices"]
    outcome.model, outcome.text = answer["model"], choice["message"]["content"]
    if answer["usage"]["completion_tokens"] > request.max_tokens:
        raise Lost(f"more tokens than asked for: {answer['usage']}")
    _finished(choice["finish_reason"], outcome)


def _finished(reason: str | None, outcome: Outcome) -> None:
    if reason != "length" and (reason != "stop" or outcome.model.partition(":")[0] in ENDLESS):
        raise Lost(f"the answer ended with {reason!r}")
    outcome.kind = "whole"


async def _read_stream(response: httpx.Response, request: Request, outcome: Outcome) -> None:
    events = 0
    finish: str | None = None
    done = False
    async for line in response.aiter_lines():
        if not line or line.startswith(":"):
            continue
        if done or not line.startswith("data: "):
            raise Lost(f"in a stream that was {'done' if done else 'running'}: {line!r}")
        outcome.first = outcome.first or time.monotonic()
        payload = line.removeprefix("data: ")
        done = payload == "[DONE]"
        if not done:
            finish = _chunk(json.loads(payload), outcome) or finish
        events += 1
        if request.chunks is not None and events >= request.chunks and not done:
            outcome.kind = "left"
            return
    if not done:
        raise Lost(f"the stream ended after {events} events without [DONE]")
    if outcome.code is None:
        _finished(finish, outcome)
    else:
        outcome.kind = "error"


def _chunk(chunk: Any, outcome: Outcome) -> str | None:
    """Take in one chunk; its finish reason, if it has one."""
    if outcome.code is not None:
        raise Lost(f"after an error: {chunk}")
    if "error" in chunk:
        outcome.code = chunk["error"]["code"]
        return None
    (choice,) = chunk["choices"]
    outcome.model = chunk["model"]
    outcome.text += choice["delta"].get("content") or ""
    reason: str | None = choice["finish_reason"]
    return reason
