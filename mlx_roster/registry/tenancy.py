"""The terms of every model in a catalog, made when they are first asked for: there may be thousands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cachetools import LRUCache

from mlx_roster.config import SchedulingSettings
from mlx_roster.registry.catalog import Catalog
from mlx_roster.registry.policy import Terms

#: Those of models that are in use are asked for all the time.
REMEMBERED = 1024


class CatalogTerms(Mapping[str, Terms]):
    """Satisfies what `Residency` asks of its terms. Unlisted models that the roster allows have some, too."""

    def __init__(self, catalog: Catalog, scheduling: SchedulingSettings) -> None:
        self._catalog = catalog
        self._scheduling = scheduling
        self._made: LRUCache[str, Terms] = LRUCache(REMEMBERED)

    def __getitem__(self, model: str) -> Terms:
        terms = self._made.get(model)
        if terms is None:
            entry = self._catalog.entry(model)
            if entry is None:
                raise KeyError(model)
            terms = self._made[model] = Terms.of(entry, self._scheduling)
        return terms

    def __iter__(self) -> Iterator[str]:
        return iter(self._catalog.entries)

    def __len__(self) -> int:
        return len(self._catalog.entries)
