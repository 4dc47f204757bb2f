"""Every error that mlx-roster raises on purpose.

* RosterError
  * ConfigError            the roster file or a command line is wrong; ends the start, never a request
  * RequestError           the request cannot be served as it stands
    * InvalidJSON
    * InvalidRequest
      * UnsupportedParameter
      * UnsupportedContent
      * ContextLengthExceeded
      * ModelRequired
    * RequestTooLarge
    * UnsupportedMediaType
    * RouteNotFound
    * MethodNotAllowed
    * ModelNotFound
    * AdapterNotFound
    * AdapterIncompatible
    * InvalidAPIKey
    * ModelNotAllowed
    * AdminRequired
    * HostNotAllowed
    * OriginNotAllowed
    * RequestTimeout
    * HeadersTooLarge
  * CapacityError          the request is fine, this machine cannot serve it (now)
    * ModelTooLarge
    * Busy                 later, it may be served; `retry_after` says when
      * QueueFull
      * QueueTimeout
      * LoadCooldown
      * Draining
      * TooManyConnections
  * WorkerError            a worker process could not do its part
    * LoadFailed
      * LoadOutOfMemory
    * WorkerCrashed
  * InternalError          a bug of ours, seen at a boundary

`code` is part of the HTTP contract and never changes; `server/errors.py` maps each class to a status.
A message is shown to clients: it names no path of the host and no exception class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class RosterError(Exception):
    """Root of the tree. `param` names the request field at fault, where there is one."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(RosterError):
    """One or more lines, each `file:line: key: what is wrong`."""

    code = "invalid_config"


class RequestError(RosterError):
    code = "invalid_request"


class InvalidJSON(RequestError):
    code = "invalid_json"


class InvalidRequest(RequestError):
    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class UnsupportedContent(InvalidRequest):
    code = "unsupported_content"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelRequired(InvalidRequest):
    code = "model_required"


class RequestTooLarge(RequestError):
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"


class RouteNotFound(RequestError):
    code = "not_found"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"


class ModelNotFound(RequestError):
    code = "model_not_found"


class AdapterNotFound(RequestError):
    code = "adapter_not_found"


class AdapterIncompatible(RequestError):
    code = "adapter_incompatible"


class InvalidAPIKey(RequestError):
    """No key came with the request, or none that the roster knows."""

    code = "invalid_api_key"


class ModelNotAllowed(RequestError):
    """The key is good, and not for this model; or it is for no model at all."""

    code = "model_not_allowed"


class HostNotAllowed(RequestError):
    """The server was asked by a name that is not its own: a page whose name was made to point here."""

    code = "host_not_allowed"


class OriginNotAllowed(RequestError):
    """A web page of another origin asked for something to be done."""

    code = "origin_not_allowed"


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    code = "request_timeout"


class HeadersTooLarge(RequestError):
    """The request line, or the headers, are longer than any honest client's."""

    code = "headers_too_large"


class AdminRequired(RequestError):
    """An admin route was asked for by somebody who must not use it."""

    code = "admin_required"


class CapacityError(RosterError):
    """`others` are models that the message names beside the one that was asked for; `discreetly` is it without them."""

    code = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, others: tuple[str, ...] = (), discreetly: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.others = others
        self.discreetly = message if discreetly is None else discreetly


class ModelTooLarge(CapacityError):
    code = "model_too_large"


class Busy(CapacityError):
    """`retry_after` is in seconds, and a guess."""

    code = "draining"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float = 5.0,
        others: tuple[str, ...] = (),
        discreetly: str | None = None,
    ) -> None:
        super().__init__(message, param=param, others=others, discreetly=discreetly)
        self.retry_after = retry_after


class QueueFull(Busy):
    code = "queue_full"


class QueueTimeout(Busy):
    code = "queue_timeout"


class LoadCooldown(Busy):
    """The last loads of a model failed, or its last workers crashed: it is left alone for a while."""

    code = "load_cooldown"


class Draining(Busy):
    """The server is shutting down, or the model is going away."""

    code = "draining"


class TooManyConnections(Busy):
    """Clients have taken all the connections that this process may have open."""

    code = "too_many_connections"


class WorkerError(RosterError):
    code = "worker_crashed"


class LoadFailed(WorkerError):
    code = "load_failed"


class LoadOutOfMemory(LoadFailed):
    """A load that ran out of memory: the registry frees what is idle and tries once more."""

    code = "load_failed"


class WorkerCrashed(WorkerError):
    code = "worker_crashed"


class InternalError(RosterError):
    code = "internal_error"


def tree(root: type[RosterError] = RosterError) -> Iterator[type[RosterError]]:
    """Every class below `root`, parents before children."""
    for child in root.__subclasses__():
        yield child
        yield from tree(child)
