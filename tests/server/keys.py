"""A roster's keys, and requests with one of them."""

from __future__ import annotations

import hashlib
from typing import Any

GOOD, OPS, PIRATE, SCRIBE, HASHED = (f"{name}-key-0123456789" for name in ("good", "ops", "pirate", "scribe", "hashed"))
KEYS: list[dict[str, Any]] = [
    {"name": "laptop", "key": GOOD, "scopes": ["infer", "admin"]},
    {"name": "ops", "key": OPS, "scopes": ["admin"]},
    {"name": "pirate", "key": PIRATE, "models": ["atlas:pirate"]},
    {"name": "scribe", "key": SCRIBE, "models": ["org/*"]},
    {"name": "hashed", "key_sha256": hashlib.sha256(HASHED.encode()).hexdigest().upper()},
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
