"""Whether a server could listen somewhere, and who does if not. Also asked by a `serve` that finds its port taken."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

from mlx_roster.doctor.facts import Address

#: How long whoever holds the port may take to say who they are, in seconds.
ANSWER = 1.5

_DENIED = (errno.EACCES, errno.EPERM)


def address_facts(host: str, port: int) -> Address:
    """Tries to listen there, for a moment."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(1)
    except OSError as error:
        return _judged(host, port, error)
    return Address(host, port, "free")


def _judged(host: str, port: int, error: OSError) -> Address:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return _holder(host, port, reason)
    return Address(host, port, "denied" if error.errno in _DENIED else "unknown", reason)


def refused(host: str, port: int, error: OSError) -> str:
    """What to say of an address that cannot be bound: why not, and what to do about it."""
    found = _judged(host, port, error)
    match found.place:
        case "ours":
            why = f"another mlx-roster serves there already: mlx-roster ps --url {found.url} shows what"
        case "denied":
            why = f"{found.reason}: ports below 1024 are the system's; put a proxy before another one"
        case "taken":
            why = f"something else listens there: lsof -i :{port} tells what"
        case _:
            why = f"{found.reason}: no address of this machine"
            return f"cannot listen on {host}:{port}: {why}\nchoose another with --host"
    return f"cannot listen on {host}:{port}: {why}\nchoose another with --port or PORT"


def url_of(host: str, port: int) -> str:
    """Where a server that listens there can be asked from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _holder(host: str, port: int, reason: str) -> Address:
    """Who listens there already."""
    import httpx2

    url = url_of(host, port)
    try:
        with httpx2.Client(base_url=url, timeout=ANSWER, trust_env=False) as client:
            health = client.get("/health")
            said = _decoded(health.content)
            # Each answer of ours has the header, also a refusal.
            if "x-request-id" not in health.headers or not isinstance(said, dict) or "status" not in said:
                return Address(host, port, "taken", reason, url)
            described = _decoded(client.get("/openapi.json").content)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError):
        return Address(host, port, "taken", reason, url)
    about = described.get("info") if isinstance(described, dict) else None
    version = about.get("version") if isinstance(about, dict) else None
    return Address(
        host,
        port,
        "ours",
        reason,
        url,
        version if isinstance(version, str) else None,
        health.status_code,
        str(said.get("status", "")),
    )


def _decoded(text: bytes) -> Any:
    """JSON; None where it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
