"""Who asks, and what they may have."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from mlx_roster.config import KeyEntry
from mlx_roster.core import Ref
from mlx_roster.errors import CapacityError, ModelNotAllowed, RosterError
from mlx_roster.registry import Registry
from mlx_roster.registry.catalog import Sight

#: As RFC 6750 has it, but for any word of printable ASCII: keys are the roster's to choose.
_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of a key or, where the roster has no keys, whoever can reach the server."""

    #: None: nobody in particular.
    key: KeyEntry | None = None
    #: Has come without a good key to a server that asks for one: may have what is for all, and nothing else.
    stranger: bool = False

    @property
    def name(self) -> str | None:
        """What the log calls them, and whose places in the queue are counted together."""
        return None if self.key is None else self.key.name

    @property
    def infers(self) -> bool:
        """Whether they may use models at all."""
        return not self.stranger and (self.key is None or "infer" in self.key.scopes)

    @property
    def operates(self) -> bool:
        """Whether they may use the admin routes, as far as a key decides that."""
        return not self.stranger and (self.key is None or "admin" in self.key.scopes)

    def may_use(self, ref: Ref) -> bool:
        """Whether what `ref` names is theirs to use, and to see."""
        return self.infers and (self.key is None or self.key.opens(ref.model, ref.adapter))

    @property
    def sees(self) -> Sight:
        """What they may know of: `may_use`, or None where that is all there is."""
        return None if self.key is None and not self.stranger else self.may_use

    @property
    def queue_limit(self) -> int | None:
        """How many of their requests may wait at a time, where their key says so."""
        return None if self.key is None else self.key.max_queued


ANYBODY = Caller()
STRANGER = Caller(stranger=True)


def identified(authorization: Sequence[str], keys: Sequence[KeyEntry]) -> Caller:
    """Who sent these `Authorization` headers to a server with these `keys`: a stranger unless it is one good header.

    Takes as long for one key as for another, and for a wrong one: all are compared, by their digests.
    """
    if not keys:
        return ANYBODY
    found = _BEARER.fullmatch(authorization[0].strip(" \t")) if len(authorization) == 1 else None
    if found is None:
        return STRANGER
    digest, caller = hashlib.sha256(found[1].encode()).digest(), STRANGER
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            caller = Caller(key)
    return caller


def resolved(registry: Registry, caller: Caller, model: str | None, adapters: str | None = None) -> Ref:
    """What a request's words mean, if that is the caller's to use. Touches nothing that is not.

    Raises what `Catalog.resolve` raises, which names nothing that the caller may not see, and ModelNotAllowed.
    """
    ref = registry.resolve(model, adapters, sees=caller.sees)
    if not caller.may_use(ref):
        # In the request's own words: what an alias or the default stands for may be nothing that they may know.
        named = "the default model" if model is None else _shown(model if adapters is None else f"{model}:{adapters}")
        raise ModelNotAllowed(f"this API key is not for {named}; GET /v1/models lists what it is for", param="model")
    return ref


def told(caller: Caller, error: RosterError) -> RosterError:
    """`error` as the caller may hear it: of models that are not theirs, no names."""
    if isinstance(error, CapacityError) and not all(caller.may_use(Ref(name)) for name in error.others):
        discreet = copy(error)
        discreet.message = error.discreetly
        return discreet
    return error


def _shown(words: str) -> str:
    return repr(words if len(words) <= 100 else words[:100] + "…")
