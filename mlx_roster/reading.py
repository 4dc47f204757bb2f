"""A roster made ready to be served: read, completed with what it says to discover, and checked against this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlx_roster.config import ModelEntry, Roster, format_bytes
from mlx_roster.config.machine import budget_bytes, check_budget
from mlx_roster.config.source import RosterSource
from mlx_roster.core import Device
from mlx_roster.errors import ConfigError, LoadFailed, ModelNotFound
from mlx_roster.loaders.discover import discover
from mlx_roster.loaders.sizes import estimate
from mlx_roster.loaders.source import cached, draft_folders, offline_by_environment
from mlx_roster.registry.catalog import Catalog

logger = logging.getLogger(__name__)

#: Models that are not here are named up to so many.
NAMED = 5


class Reading:
    """What a start and each reload do with a source before anything is changed. Called on a thread: it blocks."""

    def __init__(self, source: RosterSource, device: Device) -> None:
        self._source = source
        self._device = device

    def again(self) -> tuple[Roster, int]:
        """The roster as it is now and its budget in bytes. Raises ConfigError."""
        if not self._source.changes:
            raise ConfigError("the server was started with --model: there is no roster file to read again")
        return self.completed(self._source.read())

    def completed(self, roster: Roster) -> tuple[Roster, int]:
        """The same, of a roster that has been read already. Raises ConfigError."""
        budget = budget_bytes(roster.memory, self._device.working_set)
        try:
            check_budget(budget, self._device.memory)
            if roster.discover.hub_cache:
                roster = with_discovered(roster)
            check_kept(roster, budget)
        except ConfigError as error:
            raise ConfigError(f"{self._source.origin}: {error.message}") from error
        _warn_of_absent(roster)
        if budget > self._device.working_set:
            logger.warning(
                "memory.budget: %s is more than the %s that this machine recommends: loads may fail, or slow it down",
                format_bytes(budget),
                format_bytes(self._device.working_set),
            )
        return roster, budget


def with_discovered(roster: Roster) -> Roster:
    """`roster` with the models that it does not list. Raises ConfigError where its default is not among them."""
    found = roster.model_copy(update={"models": {**roster.models, **discover(roster)}})
    if found.default_model is not None:
        try:
            Catalog(found).resolve(found.default_model)
        except ModelNotFound as error:
            raise ConfigError(f"default_model: {error.message}") from error
    return found


def _warn_of_absent(roster: Roster) -> None:
    """Say which models could not be loaded if they were asked for now. The others are served all the same."""
    absent = list(_absent(roster))
    for line in absent[:NAMED]:
        logger.warning(line)
    if len(absent) > NAMED:
        logger.warning("%d more models are not here; mlx-roster check names them", len(absent) - NAMED)


def _absent(roster: Roster) -> Iterator[str]:
    offline = roster.offline or offline_by_environment()
    for name, entry in roster.models.items():
        if isinstance(entry.source, Path):
            if not entry.source.is_dir():
                yield f"{name}: its folder {entry.source} does not exist"
            elif not (entry.source / "config.json").is_file():
                yield f"{name}: its folder {entry.source} has no config.json, as a model would"
        elif offline and cached(entry.source, entry.revision, code=entry.trust_remote_code) is None:
            why = "the roster says offline" if roster.offline else "HF_HUB_OFFLINE is set"
            yield f"{name}: {entry.source} is not in the Hub cache, and {why}; mlx-roster pull {entry.source} gets it"


def check_kept(roster: Roster, budget: int) -> None:
    """Raises ConfigError where the models with pin or preload cannot all be loaded together.

    Those whose files are not here, or cannot be read, are not counted.
    """
    sizes: dict[str, int] = {}
    for name, entry in roster.models.items():
        if (entry.pin or entry.preload) and (size := _size(entry, roster.memory.headroom)) is not None:
            sizes[name] = size
    if (problem := too_much(sizes, budget)) is not None:
        raise ConfigError(problem)


def too_much(sizes: Mapping[str, int], budget: int) -> str | None:
    """What is wrong with keeping models of these sizes loaded all the time, if anything is."""
    total = sum(sizes.values())
    if total <= budget:
        return None
    each = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    return (
        f"the models with pin or preload take {format_bytes(total)} together, more than the budget "
        f"of {format_bytes(budget)}: {each}"
    )


def _size(entry: ModelEntry, headroom: float) -> int | None:
    """Bytes that the model is expected to take; None where that cannot be told now."""
    source = entry.source
    folder = source if isinstance(source, Path) else cached(source, entry.revision, code=entry.trust_remote_code)
    drafts = draft_folders(entry)
    here = [draft for draft in drafts if draft is not None]
    try:
        return None if folder is None or len(here) < len(drafts) else estimate(folder, entry, headroom, here).total
    except LoadFailed:
        return None
