"""Who somebody is takes as long to find out for one key as for another, and for a wrong one: what that is made of."""

from __future__ import annotations

import hashlib
from typing import cast

import pytest

from mlx_roster.config import KeyEntry
from mlx_roster.server.callers import identified


class Digest(bytes):
    """May only be compared by what takes as long for every other: `==` ends at the first byte that differs."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError


class Looked:
    """A key of a roster, as far as one is looked for: counts how often it is."""

    def __init__(self, key: str) -> None:
        self.times = 0
        self._digest = Digest(hashlib.sha256(key.encode()).digest())

    @property
    def digest(self) -> bytes:
        self.times += 1
        return self._digest


@pytest.mark.parametrize("said", ["first", "second", "third", "none"])
def test_every_key_is_compared_whichever_it_is(said: str) -> None:
    keys = [Looked(name) for name in ("first", "second", "third")]
    caller = identified([f"Bearer {said}"], cast("list[KeyEntry]", keys))
    assert [key.times for key in keys] == [1, 1, 1]
    assert [caller.key is key for key in keys] == [said == name for name in ("first", "second", "third")]
