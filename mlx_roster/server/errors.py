"""What a client is told when something fails: one shape, on every route, in streams too."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mlx_roster import errors
from mlx_roster.errors import RosterError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class Answer(NamedTuple):
    """How HTTP says an error: the status, OpenAI's `type`, and headers that go with it."""

    status: int
    type: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


_RETRY_SOON = ((b"retry-after", b"5"),)
# OpenAI's clients repeat every 5xx by themselves unless told that it is of no use.
_DO_NOT_RETRY = ((b"x-should-retry", b"false"),)

#: The one table. A subclass without a row of its own has its nearest ancestor's; ConfigError never answers a request.
ANSWERS: dict[type[RosterError], Answer] = {
    errors.InvalidJSON: Answer(400, INVALID_REQUEST),
    errors.InvalidRequest: Answer(400, INVALID_REQUEST),
    errors.UnsupportedParameter: Answer(400, INVALID_REQUEST),
    errors.UnsupportedContent: Answer(400, INVALID_REQUEST),
    errors.ContextLengthExceeded: Answer(400, INVALID_REQUEST),
    errors.ModelRequired: Answer(400, INVALID_REQUEST),
    errors.RouteNotFound: Answer(404, INVALID_REQUEST),
    errors.ModelNotFound: Answer(404, INVALID_REQUEST),
    errors.AdapterNotFound: Answer(404, INVALID_REQUEST),
    errors.MethodNotAllowed: Answer(405, INVALID_REQUEST),
    errors.RequestTooLarge: Answer(413, INVALID_REQUEST),
    errors.UnsupportedMediaType: Answer(415, INVALID_REQUEST),
    errors.AdapterIncompatible: Answer(422, INVALID_REQUEST),
    errors.InternalError: Answer(500, SERVER_ERROR),
    errors.LoadFailed: Answer(502, SERVER_ERROR),
    errors.LoadOutOfMemory: Answer(502, SERVER_ERROR),
    errors.WorkerCrashed: Answer(502, SERVER_ERROR),
    errors.Draining: Answer(503, SERVER_ERROR, _RETRY_SOON),
    errors.ModelTooLarge: Answer(507, SERVER_ERROR, _DO_NOT_RETRY),
}


def answer(error: RosterError) -> Answer | None:
    """The row for `error`, or None for what must not be shown to a client."""
    for cls in type(error).__mro__:
        if (found := ANSWERS.get(cls)) is not None:
            return found
    return None


def body(error: RosterError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`. Only for an error that has an answer."""
    found = answer(error)
    assert found is not None, f"{type(error).__name__} is not for clients"
    shown = {"message": error.message, "type": found.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": shown})
