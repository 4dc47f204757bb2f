"""Who may use `/admin`: as long as there are no keys, whoever is on this machine, but no web page in a browser on it.

A page cannot read a server on localhost, but it can post to it (a form asks nobody), and one whose name was made to
point to 127.0.0.1 after it was loaded (DNS rebinding) can read it too. The first shows in the Origin header, the second
in Host; a browser lets no page write either.

A proxy on this machine makes everybody's requests look like its own, so what one has passed on is refused where it
shows: in a header that says for whom, or in HTTP/1.0, which is what nginx speaks if nobody tells it otherwise.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_roster.errors import AdminRequired

_HOST = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?")

#: What proxies add. No command line and no browser sends any of it.
_PASSED_ON = frozenset({"forwarded", "x-real-ip", "via"})


class LocalOnly:
    """Wraps an ASGI application. Raises AdminRequired for a request that is not this machine's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _check(Headers(scope=scope), scope["http_version"])
        await self._app(scope, receive, send)


def _check(headers: Headers, version: str) -> None:
    hosts = [host.lower() for host in headers.getlist("host")]
    if len(hosts) != 1 or not is_loopback(hosts[0]):
        raise AdminRequired("admin routes answer only under a loopback name, such as localhost or 127.0.0.1")
    own = {f"http://{hosts[0]}", f"https://{hosts[0]}"}
    if not all(origin.lower() in own for origin in headers.getlist("origin")):
        raise AdminRequired("admin routes do not answer to web pages of another origin")
    if version == "1.0" or any(name in _PASSED_ON or name.startswith("x-forwarded-") for name in headers):
        raise AdminRequired("admin routes do not answer through a proxy")


def is_loopback(host: str) -> bool:
    """Whether a Host header, port included, means this machine whatever the DNS says."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        if found["six"] is not None:
            return IPv6Address(found["six"]).is_loopback
        return found["name"] == "localhost" or IPv4Address(found["name"]).is_loopback
    except AddressValueError:
        return False
