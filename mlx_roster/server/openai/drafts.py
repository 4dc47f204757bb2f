"""Whether a request's draft model is one that its model has."""

from __future__ import annotations

from mlx_roster.core import Capabilities, Generation
from mlx_roster.errors import InvalidRequest
from mlx_roster.server.openai.fields import shown


def check_draft(generation: Generation, capabilities: Capabilities) -> None:
    """Raises InvalidRequest. Called with what the leased Resident says of itself, before it is asked for anything."""
    if generation.draft is None or generation.draft in capabilities.drafts:
        return
    listed = ", ".join(map(repr, capabilities.drafts))
    there = f"there are {listed}" if listed else "it has none"
    raise InvalidRequest(f"this model has no draft model {shown([generation.draft])!r}: {there}", param="draft_model")
