"""What a model's own generation_config.json recommends, as far as a request has fields for it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

logger = logging.getLogger(__name__)

_Chance = Annotated[float, Meta(ge=0, le=1)]

#: Their name → that of the request field, and what a request may have there.
_FIELDS: dict[str, tuple[str, Any]] = {
    "max_new_tokens": ("max_tokens", Annotated[int, Meta(ge=1, le=2**31 - 1)]),
    "temperature": ("temperature", Annotated[float, Meta(ge=0)]),
    "top_p": ("top_p", Annotated[float, Meta(gt=0, le=1)]),
    "top_k": ("top_k", Annotated[int, Meta(ge=0, le=2**31 - 1)]),
    "min_p": ("min_p", _Chance),
    "repetition_penalty": ("repetition_penalty", Annotated[float, Meta(gt=0)]),
}


def generation_defaults(folder: Path) -> dict[str, float]:
    """By the names of request fields: for `Capabilities.generation`. What cannot be used is logged and left out."""
    try:
        said = json.loads((folder / "generation_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        logger.warning("generation_config.json cannot be read, and counts for nothing")
        return {}
    if not isinstance(said, dict):
        logger.warning("generation_config.json is no JSON object, and counts for nothing")
        return {}
    found: dict[str, float] = {}
    for name, (field, kind) in _FIELDS.items():
        value = said.get(name)
        if value is None:
            continue
        try:
            number: float = msgspec.convert(value, kind)
        except (msgspec.ValidationError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            found[field] = number
        else:
            logger.warning("generation_config.json: %s is not what a request may have, and counts for nothing", name)
    if said.get("do_sample") is False:
        found["temperature"] = 0.0
    return found
