"""How a roster differs from the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mlx_roster.config import Roster
from mlx_roster.registry.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Revision:
    """A roster, and what it has anew, otherwise, and no more: names of models in their file's order."""

    roster: Roster
    catalog: Catalog
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    #: The sections beside `models` that say something else.
    settings: tuple[str, ...]

    @classmethod
    def between(cls, before: Roster, after: Roster, directory: Path) -> Self:
        """Takes a while where there are thousands of models: may be called on any thread."""
        old, new = before.models, after.models
        return cls(
            after,
            Catalog(after, directory),
            added=tuple(name for name in new if name not in old),
            changed=tuple(name for name in new if name in old and new[name] != old[name]),
            removed=tuple(name for name in old if name not in new),
            settings=_settings(before, after),
        )


def _settings(before: Roster, after: Roster) -> tuple[str, ...]:
    old, new = (roster.model_dump(exclude={"models"}) for roster in (before, after))
    return tuple(section for section in new if new[section] != old[section])
