"""Which web pages may use the server from a browser: exact origins, as the roster has them."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers

Pairs = list[tuple[str, str]]

#: What a page may read of an answer beside its body.
EXPOSED = "x-request-id, x-roster-wait-ms, x-roster-load-ms, x-roster-ignored, retry-after, x-should-retry"

#: What a page may send unasked-for. A client that says what it wants to send may send that: OpenAI's own has a dozen
#: headers that say what it runs on, and no header opens anything here but a key.
HEADERS = "authorization, content-type, x-request-id"
METHODS = "GET, HEAD, POST, OPTIONS"

#: How long a browser need not ask again, in seconds: a change of the roster may take so long to reach it.
MAX_AGE = 600

_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_LONGEST = 4096


def allows(origins: Collection[str], asked: Collection[str]) -> bool:
    """Whether a request with these Origin headers comes from one of the roster's `origins`."""
    return len(asked) == 1 and ("*" in origins or next(iter(asked)).lower() in origins)


def answer_headers(origins: Collection[str], asked: Collection[str]) -> Pairs:
    """What any answer to a request with these Origin headers has, errors and streams included."""
    found: Pairs = []
    if allows(origins, asked):
        shown = "*" if "*" in origins else next(iter(asked))
        found += [("access-control-allow-origin", shown), ("access-control-expose-headers", EXPOSED)]
    # Also where it was not allowed, or not asked: a cache must not give that answer to a page that is.
    return [*found, ("vary", "origin")] if origins and "*" not in origins else found


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks if a page may send the request that it is about to send."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight_headers(headers: Headers) -> Pairs:
    """What the answer to an allowed preflight has beside `answer_headers`. The same for every route, so that it says of
    none whether it is there."""
    wanted = headers.get("access-control-request-headers", "")
    sane = len(wanted) <= _LONGEST and _HEADER_NAMES.fullmatch(wanted)
    return [
        ("access-control-allow-methods", METHODS),
        ("access-control-allow-headers", wanted if sane else HEADERS),
        ("access-control-max-age", str(MAX_AGE)),
    ]
