"""The access line: what the log says of each request once it is over. docs/logs.md lists its fields."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from mlx_roster.logs import written
from mlx_roster.metrics import Account
from mlx_roster.server.exchange import Exchange

#: What machines ask all the time. That it went well is worth a line only to who wants all of them.
MONITORING = frozenset({"/health", "/ready", "/metrics"})

#: Of what clients choose, so many characters are logged at most.
LONGEST = 256

_STRANGE = re.compile(r"[^\x21-\x7e]")


def level(account: Account, scope: Scope) -> int:
    """At which level the request's line is written."""
    return logging.DEBUG if scope["path"] in MONITORING and account.status == 200 else logging.INFO


def facts(exchange: Exchange, scope: Scope) -> dict[str, Any]:
    """The line's fields, without those that the request has none of."""
    account = exchange.account
    assert account.ended is not None
    served = account.waited is not None and account.operation is not None
    every = {
        "event": "request",
        "request_id": exchange.request_id,
        "method": _short(scope["method"]),
        # The raw path is still percent-encoded.
        "path": _short(scope.get("raw_path", b"").decode("latin-1")),
        "status": account.status,
        "code": account.code,
        "model": account.model,
        "adapter": account.adapter,
        "caller": account.caller,
        "client": _short(client[0]) if (client := scope.get("client")) else None,
        "stream": account.stream if account.operation else None,
        "ms": _ms(account.ended - account.started),
        "wait_ms": _ms(account.waited),
        "load_ms": _ms(account.loaded),
        "ttft_ms": None if account.first is None else _ms(account.first - account.started),
        "prompt_tokens": account.prompt_tokens or None,
        "cached_tokens": account.cached_tokens if account.prompt_tokens else None,
        "completion_tokens": account.completion_tokens if served else None,
        "reasoning_tokens": account.reasoning_tokens or None,
        "accepted_tokens": account.accepted_tokens or None,
        "rejected_tokens": account.rejected_tokens or None,
        "finish": ",".join(dict.fromkeys(account.finishes)) or None,
    }
    return {name: value for name, value in every.items() if value is not None}


def line(about: Mapping[str, Any]) -> str:
    """The same, for people."""
    outcome = f"{about['method']} {about['path']} {about['status']}"
    if "code" in about:
        outcome += f" {about['code']}"
    named = ":".join(about[name] for name in ("model", "adapter") if name in about) or "-"
    parts = [f"{outcome:<30} {about['ms']:>6.0f} ms {named:<12}"]
    parts += [f"{name}={about[field]:.0f}ms" for name, field in _TIMES if field in about]
    if "completion_tokens" in about:
        parts.append(f"tokens={about.get('prompt_tokens', '?')}+{about['completion_tokens']}")
    if about.get("cached_tokens"):
        parts.append(f"cached={about['cached_tokens']}")
    if "finish" in about:
        parts.append(f"finish={about['finish']}")
    if about.get("stream"):
        parts.append("stream")
    if "caller" in about:
        parts.append(f"caller={about['caller']}")
    return " ".join([*parts, f"id={written(about['request_id'])}"])


_TIMES = (("wait", "wait_ms"), ("load", "load_ms"), ("ttft", "ttft_ms"))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _short(text: str) -> str:
    """What a client chose, printable and not without end."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return _STRANGE.sub(lambda found: f"%{ord(found[0]):02X}", short)
