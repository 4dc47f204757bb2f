"""Requests, and what the client makes of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bench.models import words
from bench.servers import PATIENCE, Broken, Lines, Server

STREAMS = 16
TOKENS = 64
#: About 30 tokens with the template around them.
WORDS = 8

Messages = list[dict[str, str]]


def prompts(label: str, count: int = STREAMS, length: int = WORDS) -> list[Messages]:
    """The same for the same label. No two labels share any: a prompt cache must have nothing to gain."""
    text = words(zlib.crc32(label.encode()))
    return [[{"role": "user", "content": " ".join(islice(text, length))}] for _ in range(count)]


class Client:
    """The client process, as a measurement uses it."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def wave(
        self, server: Server, bodies: Sequence[dict[str, Any]], patience: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """All requests at once, whatever becomes of them."""
        where = {"host": server.host, "port": server.port}
        results: list[dict[str, Any]] = self._lines.ask(
            {"op": "wave", **where, "bodies": list(bodies), "patience": patience}
        )
        return results

    def served(self, server: Server, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All requests at once. Raises Broken where one of them got anything but all its tokens."""
        results = self.wave(server, bodies)
        for body, result in zip(bodies, results, strict=True):
            check(body, result)
        return results

    def rate(
        self, server: Server, waves: Sequence[Sequence[Messages]], models: Sequence[Path], adapters: Sequence[Path] = ()
    ) -> float:
        """Tokens/s over `waves`, one after the other; each wave's requests take the models and adapters in turn."""
        tokens, seconds = 0, 0.0
        for wave in waves:
            bodies = [
                server.body(
                    messages,
                    TOKENS,
                    models[number % len(models)],
                    adapters[number % len(adapters)] if adapters else None,
                )
                for number, messages in enumerate(wave)
            ]
            results = self.served(server, bodies)
            tokens += sum(result["tokens"] for result in results)
            seconds += duration(results)
        return tokens / seconds

    def pooled(self, server: Server, bodies: Sequence[dict[str, Any]], concurrency: int) -> float:
        """Tokens/s over requests in their order, always `concurrency` of them at once. Raises Broken."""
        where = {"host": server.host, "port": server.port}
        results = self._lines.ask(
            {"op": "pool", **where, "bodies": list(bodies), "concurrency": concurrency, "patience": PATIENCE}
        )
        for body, result in zip(bodies, results, strict=True):
            check(body, result)
        return float(sum(result["tokens"] for result in results)) / duration(results)

    def first_token(self, server: Server, messages: Messages, model: Path, tokens: int = 1) -> float:
        """Seconds from the request to the first token."""
        first: float = self.served(server, [server.body(messages, tokens, model)])[0]["first"]
        return first

    def disturbed(
        self, server: Server, stream: dict[str, Any], disturbance: dict[str, Any], before: float
    ) -> tuple[list[float], float, float]:
        """When chunks of `stream` came, and when `disturbance` was sent and got its first token. Raises Broken."""
        found = self._lines.ask(
            {
                "op": "disturbed",
                "host": server.host,
                "port": server.port,
                "stream": stream,
                "disturbance": disturbance,
                "before": before,
                "patience": PATIENCE,
            }
        )
        check(disturbance, found["disturbance"])
        if not found["running"]:
            raise Broken(f"the long stream ended before the load did: {found['error']}")
        sent = found["disturbance"]["begun"]
        return found["stamps"], sent, sent + found["disturbance"]["first"]

    def joined(
        self, server: Server, stream: dict[str, Any], joining: Sequence[dict[str, Any]], before: float, pause: float
    ) -> tuple[list[float], list[dict[str, Any]]]:
        """When chunks of `stream` came, and what became of the requests beside it. Raises Broken."""
        times = {"before": before, "pause": pause, "patience": PATIENCE}
        where = {"host": server.host, "port": server.port}
        found = self._lines.ask({"op": "joined", **where, "stream": stream, "joining": list(joining), **times})
        for body, result in zip(joining, found["joined"], strict=True):
            check(body, result)
        if not found["running"]:
            raise Broken(f"the long stream ended before the requests beside it: {found['error']}")
        return found["stamps"], found["joined"]


def duration(results: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first request's beginning to the last one's end."""
    return float(max(result["ended"] for result in results) - min(result["begun"] for result in results))


def check(body: dict[str, Any], result: dict[str, Any]) -> None:
    """Raises Broken unless the response was whole."""
    if result["error"] is not None or result["tokens"] != body["max_tokens"]:
        raise Broken(f"{body['model']}: {body['max_tokens']} tokens were to come, but: {result}")
