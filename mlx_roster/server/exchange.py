"""One request and its response, as all who have to do with it know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.types import Scope

from mlx_roster.metrics import Account
from mlx_roster.registry import Lease
from mlx_roster.registry.ports import Stream
from mlx_roster.server.callers import ANYBODY, Caller

#: Where it is in the scope.
KEY = "mlx_roster.exchange"
#: And where there is what the connection itself has answered in the application's place: a Refusal.
REFUSED = "mlx_roster.refused"


class Refusal(NamedTuple):
    """An answer to a request that was not whole, and never will be."""

    request_id: str
    status: int
    code: str

    @classmethod
    def of(cls, scope: Scope) -> Refusal | None:
        refusal = scope.get(REFUSED)
        return refusal if isinstance(refusal, cls) else None


@dataclass(slots=True)
class Exchange:
    """One request and its response, from the outside: what the middleware and the endpoints tell each other."""

    request_id: str
    account: Account
    #: Sent with the response's first line, whatever the response turns out to be.
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    #: Of the request's fields, those that had no effect, by the names that the client gave them.
    ignored: list[str] = field(default_factory=list)
    #: Who asks: set before any endpoint is reached.
    caller: Caller = ANYBODY
    status: int | None = None
    #: What the answer is made from, while it is being made.
    streams: Sequence[Stream] = ()
    client_gone: bool = False
    #: The error that the client was told, if it was told one.
    code: str | None = None
    #: From here on, errors are events.
    streaming: bool = False
    #: The response goes on until the server shuts down.
    endless: bool = False
    complete: bool = False

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """The Exchange that `Boundary` put into the scope."""
        exchange = cls.find(scope)
        assert exchange is not None
        return exchange

    @classmethod
    def find(cls, scope: Scope) -> Exchange | None:
        """The same, of a scope that has perhaps not come so far."""
        exchange = scope.get(KEY)
        return exchange if isinstance(exchange, cls) else None

    @property
    def unread(self) -> int:
        """Bytes that have been generated and wait for the client to read what came before, about."""
        return sum(stream.unread for stream in self.streams)

    def add_header(self, name: str, value: str) -> None:
        self.headers.append((name.encode("ascii"), value.encode("ascii")))

    def granted(self, lease: Lease) -> None:
        """The request holds `lease`: say what it waited for."""
        self.account.waited, self.account.loaded = lease.wait_ms / 1000, lease.load_ms / 1000
        self.add_header("x-roster-wait-ms", f"{lease.wait_ms:.0f}")
        self.add_header("x-roster-load-ms", f"{lease.load_ms:.0f}")
