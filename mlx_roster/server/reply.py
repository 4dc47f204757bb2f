"""A value as a JSON response."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


def reply(value: Any, status: int = 200) -> Response:
    """`value` may be made of dataclasses. What JSON has no number for, such as infinity, is null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
