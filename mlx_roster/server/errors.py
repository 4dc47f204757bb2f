"""What a client is told when something fails: one shape, on every route, in streams too."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from mlx_roster import errors
from mlx_roster.errors import RosterError

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"

#: The longest wait, in seconds, that every version of OpenAI's clients takes from `Retry-After`. Asked for a longer
#: one, some come back at once, as if nothing had been said.
PATIENCE = 60


class RosterRefused(errors.InvalidRequest):
    """The roster file that a reload was asked for is wrong: a ConfigError as a client may see it, without folders."""

    code = errors.ConfigError.code


class Answer(NamedTuple):
    """How HTTP says an error: the status, OpenAI's `type`, and whether asking again soon may help."""

    status: int
    type: str
    again: bool = True


#: The one table. A subclass without a row of its own has its nearest ancestor's; ConfigError never answers a request.
ANSWERS: dict[type[RosterError], Answer] = {
    errors.InvalidJSON: Answer(400, INVALID_REQUEST),
    errors.InvalidRequest: Answer(400, INVALID_REQUEST),
    errors.UnsupportedParameter: Answer(400, INVALID_REQUEST),
    errors.UnsupportedContent: Answer(400, INVALID_REQUEST),
    errors.ContextLengthExceeded: Answer(400, INVALID_REQUEST),
    errors.ModelRequired: Answer(400, INVALID_REQUEST),
    RosterRefused: Answer(400, INVALID_REQUEST),
    errors.InvalidAPIKey: Answer(401, INVALID_REQUEST),
    errors.AdminRequired: Answer(403, INVALID_REQUEST),
    errors.ModelNotAllowed: Answer(403, INVALID_REQUEST),
    errors.HostNotAllowed: Answer(403, INVALID_REQUEST),
    errors.OriginNotAllowed: Answer(403, INVALID_REQUEST),
    errors.RouteNotFound: Answer(404, INVALID_REQUEST),
    errors.ModelNotFound: Answer(404, INVALID_REQUEST),
    errors.AdapterNotFound: Answer(404, INVALID_REQUEST),
    errors.MethodNotAllowed: Answer(405, INVALID_REQUEST),
    errors.RequestTimeout: Answer(408, INVALID_REQUEST, again=False),
    errors.RequestTooLarge: Answer(413, INVALID_REQUEST),
    errors.UnsupportedMediaType: Answer(415, INVALID_REQUEST),
    errors.AdapterIncompatible: Answer(422, INVALID_REQUEST),
    errors.HeadersTooLarge: Answer(431, INVALID_REQUEST),
    errors.QueueFull: Answer(429, RATE_LIMIT),
    errors.InternalError: Answer(500, SERVER_ERROR),
    # A model that failed to load is left alone for a while: asked again at once, the answer is only a LoadCooldown.
    errors.LoadFailed: Answer(502, SERVER_ERROR, again=False),
    errors.LoadOutOfMemory: Answer(502, SERVER_ERROR, again=False),
    errors.WorkerCrashed: Answer(502, SERVER_ERROR),
    errors.QueueTimeout: Answer(503, SERVER_ERROR),
    errors.LoadCooldown: Answer(503, SERVER_ERROR),
    errors.Draining: Answer(503, SERVER_ERROR),
    errors.TooManyConnections: Answer(503, SERVER_ERROR),
    errors.ModelTooLarge: Answer(507, SERVER_ERROR, again=False),
}


def answer(error: RosterError) -> Answer | None:
    """The row for `error`, or None for what must not be shown to a client."""
    for cls in type(error).__mro__:
        if (found := ANSWERS.get(cls)) is not None:
            return found
    return None


def headers(error: RosterError) -> list[tuple[bytes, bytes]]:
    """What tells a client when to ask again, and with what. OpenAI's repeat each 429 and 5xx by themselves unless told
    not to."""
    found, extra = answer(error), []
    if isinstance(error, errors.InvalidAPIKey):
        extra.append((b"www-authenticate", b"Bearer"))
    again = found is None or found.again
    if isinstance(error, errors.Busy):
        wait = max(1, math.ceil(error.retry_after))
        extra.append((b"retry-after", b"%d" % wait))
        again = again and wait <= PATIENCE
    if isinstance(error, errors.RequestTimeout):
        # What is still to come of the request would be taken for the next one.
        extra.append((b"connection", b"close"))
    return extra if again else [*extra, (b"x-should-retry", b"false")]


def body(error: RosterError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`. Only for an error that has an answer."""
    found = answer(error)
    assert found is not None, f"{type(error).__name__} is not for clients"
    shown = {"message": error.message, "type": found.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": shown})
