"""Who may ask for what: the one table of routes and rules, and the middleware that keeps to it.

Checked in this order, before anything of a request's body is read: that a server on a loopback address is asked by a
name of its own (DNS rebinding), that no web page asks that must not, that there is a good key where the roster has
keys, and that its scopes go with the route. The models of a key are the endpoints' to check: see `callers.resolved`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_roster.config import ServerSettings
from mlx_roster.config.settings import is_loopback
from mlx_roster.errors import AdminRequired, InvalidAPIKey, ModelNotAllowed, OriginNotAllowed
from mlx_roster.registry import Registry
from mlx_roster.server import cors
from mlx_roster.server.callers import Caller, identified
from mlx_roster.server.exchange import Exchange
from mlx_roster.server.guard import check_host, check_local, foreign_origins


class Rule(Enum):
    """Who may ask for a route, by whatever method. Where the roster has no keys, all but ADMIN is for anybody."""

    #: Anybody. Names of models are for those who operate the server, all the same.
    PUBLIC = auto()
    #: The bearer of any good key.
    KEY = auto()
    #: The bearer of a key with the scope infer, and of models, those that the key opens.
    INFER = auto()
    #: The bearer of a key with the scope admin.
    OPERATE = auto()
    #: The same, and no web page of another origin. Without keys, this machine alone.
    ADMIN = auto()


#: Every route there is.
RULES: Mapping[str, Rule] = {
    "/v1/chat/completions": Rule.INFER,
    "/chat/completions": Rule.INFER,
    "/v1/completions": Rule.INFER,
    "/v1/models": Rule.INFER,
    "/v1/models/{id:path}": Rule.INFER,
    "/health": Rule.PUBLIC,
    "/ready": Rule.PUBLIC,
    "/metrics": Rule.OPERATE,
    "/openapi.json": Rule.KEY,
    "/admin/status": Rule.ADMIN,
    "/admin/events": Rule.ADMIN,
    "/admin/reload": Rule.ADMIN,
    "/admin/models/{id:path}/load": Rule.ADMIN,
    "/admin/models/{id:path}/unload": Rule.ADMIN,
    "/admin/models/{id:path}/pin": Rule.ADMIN,
    "/admin/models/{id:path}/unpin": Rule.ADMIN,
    "/admin/models/{id:path}": Rule.ADMIN,
}

#: For what is no route. Without a key nobody learns what is one.
UNKNOWN = Rule.KEY

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def ruled(routes: Iterable[BaseRoute], rules: Mapping[str, Rule] = RULES) -> list[tuple[Route, Rule]]:
    """The routes with their rules. Raises LookupError for one that has none, and for a mount, which hides others."""
    found = []
    for route in routes:
        if not isinstance(route, Route) or route.path not in rules:
            raise LookupError(f"{route!r} has no rule: server/access.py says of each plain route who may ask for it")
        found.append((route, rules[route.path]))
    return found


class Access:
    """Wraps the router, inside Boundary: what it raises is answered there. Raises LookupError for a route without rule.

    All that a reload may change is looked up for each request. The address is not: it is that of the start.
    """

    def __init__(self, app: ASGIApp, *, registry: Registry, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._registry = registry
        self._ruled = ruled(routes)
        self._loopback = is_loopback(registry.roster.server.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange, headers, rule = Exchange.of(scope), Headers(scope=scope), self._rule(scope)
        roster = self._registry.roster
        keyed = bool(roster.auth.keys)
        if not keyed and not self._loopback:
            # No roster comes so far; and if one did, this is no server for all the world.
            raise InvalidAPIKey("this server asks for an API key, and knows none")
        if rule is Rule.ADMIN:
            self._check_admin(headers, scope["http_version"], roster.server, keyed=keyed)
        elif self._page(exchange, headers, scope["method"], roster.server, keyed=keyed):
            await Response(status_code=204)(scope, receive, send)
            return
        exchange.caller = identified(headers.getlist("authorization"), roster.auth.keys)
        _check_caller(rule, exchange.caller, said="authorization" in headers)
        await self._app(scope, receive, send)

    def _rule(self, scope: Scope) -> Rule:
        """By the routes' own word, so that the router cannot take it for another one."""
        partly = None
        for route, rule in self._ruled:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return rule
            if match is Match.PARTIAL and partly is None:
                partly = rule
        if partly is not None:
            return partly
        return Rule.ADMIN if (scope["path"] + "/").startswith("/admin/") else UNKNOWN

    def _check_admin(self, headers: Headers, version: str, server: ServerSettings, *, keyed: bool) -> None:
        """Admin routes are for no web page, whatever `cors_origins` has: who must be one may serve it from here."""
        if not keyed:
            check_local(headers, version)
            return
        if self._loopback:
            check_host(headers, server.hosts)
        if foreign_origins(headers):
            raise OriginNotAllowed("admin routes do not answer to web pages of another origin")

    def _page(self, exchange: Exchange, headers: Headers, method: str, server: ServerSettings, *, keyed: bool) -> bool:
        """Check from which page a request comes, if from one, and give its answer the headers that a browser heeds.

        Returns whether it is a preflight, and all has been said. Raises HostNotAllowed and OriginNotAllowed.
        """
        asked = headers.getlist("origin")
        allowed = cors.allows(server.cors_origins, asked)
        for name, value in cors.answer_headers(server.cors_origins, asked):
            exchange.add_header(name, value)
        if self._loopback:
            check_host(headers, server.hosts)
        preflight = cors.is_preflight(method, headers)
        if allowed and preflight:
            for name, value in cors.preflight_headers(headers):
                exchange.add_header(name, value)
            return True
        # A page that has no key can do nothing with one: where there are keys, browsers have the rest done by CORS.
        refused = preflight or (not keyed and method not in _READING)
        if refused and not allowed and foreign_origins(headers):
            raise OriginNotAllowed(
                "pages of this origin may not use the server: server.cors_origins is for those that may"
            )
        return False


def _check_caller(rule: Rule, caller: Caller, *, said: bool) -> None:
    if rule is Rule.PUBLIC:
        return
    if caller.stranger:
        raise InvalidAPIKey(
            "this is none of the server's API keys; it wants one as Authorization: Bearer KEY"
            if said
            else "this server wants an API key, as Authorization: Bearer KEY"
        )
    if rule is Rule.INFER and not caller.infers:
        raise ModelNotAllowed("this API key is not for using models: it lacks the scope infer")
    if rule in (Rule.OPERATE, Rule.ADMIN) and not caller.operates:
        raise AdminRequired("this API key is not for operating the server: it lacks the scope admin")
