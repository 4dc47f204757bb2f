"""By which names this machine may be asked, and who may use `/admin` as long as there are no keys: whoever is on this
machine, but no web page in a browser on it.

A page cannot read a server on localhost, but it can post to it (a form asks nobody), and one whose name was made to
point to 127.0.0.1 after it was loaded (DNS rebinding) can read it too. The first shows in the Origin header, the second
in Host; a browser lets no page write either.

A proxy on this machine makes everybody's requests look like its own, so what one has passed on is refused where it
shows: in a header that says for whom, or in HTTP/1.0, which is what nginx speaks if nobody tells it otherwise. Where
there are keys, these decide, and nothing that a proxy says of anybody is believed or looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from starlette.datastructures import Headers

from mlx_roster.errors import AdminRequired, HostNotAllowed

_HOST = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?")

_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,8}")

#: What proxies add. No command line and no browser sends any of it.
_PASSED_ON = frozenset({"forwarded", "x-real-ip", "via"})


def check_local(headers: Headers, version: str) -> None:
    """Raises AdminRequired for a request, in this version of HTTP, that is not this machine's own."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_loopback(hosts[0].lower()):
        raise AdminRequired("admin routes answer only under a loopback name, such as localhost or 127.0.0.1")
    if foreign_origins(headers):
        raise AdminRequired("admin routes do not answer to web pages of another origin")
    if version == "1.0" or any(name in _PASSED_ON or name.startswith("x-forwarded-") for name in headers):
        raise AdminRequired("admin routes do not answer through a proxy")


def check_host(headers: Headers, names: Collection[str]) -> None:
    """Raises HostNotAllowed unless the one Host header is a loopback name, or one of `names`, with any port.

    For a server on a loopback address. HTTP/1.0 may leave Host out, and is refused then like all else.
    """
    hosts = [host.lower() for host in headers.getlist("host")]
    if len(hosts) != 1:
        raise HostNotAllowed("a request has exactly one Host header")
    found = _HOST.fullmatch(hosts[0])
    if not is_loopback(hosts[0]) and (found is None or found["name"] not in names):
        raise HostNotAllowed(
            "this server answers only under a loopback name, such as localhost or 127.0.0.1, "
            f"and those that server.hosts in its roster has{_remedy(found)}"
        )


def _remedy(host: re.Match[str] | None) -> str:
    """What to write there for a name that could be: clients in containers call this machine host.docker.internal."""
    name = host["name"] if host is not None else None
    return f": hosts: [{name}] would add this one" if name and _NAME.fullmatch(name) else ""


def foreign_origins(headers: Headers) -> list[str]:
    """Those of the request's Origin headers that are not the very place that it was sent to."""
    own = {f"{scheme}://{host.lower()}" for host in headers.getlist("host") for scheme in ("http", "https")}
    return [origin for origin in headers.getlist("origin") if origin.lower() not in own]


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
