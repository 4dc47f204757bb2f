"""What `pull` is asked for: Hub repos by their id, and models by the names that a roster has for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_roster.config import MemorySettings, ModelEntry, Roster
from mlx_roster.config.load import load
from mlx_roster.config.paths import is_repo_id
from mlx_roster.errors import AdapterNotFound, ConfigError, ModelNotFound
from mlx_roster.loaders.discover import entry_of
from mlx_roster.registry.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Target:
    """One repo to pull. `entry` is what would serve it: that of a roster which has it `listed`, or one
    with default settings."""

    repo: str
    revision: str | None
    entry: ModelEntry
    listed: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to pull, each repo once, and what it is to fit into."""

    targets: tuple[Target, ...]
    memory: MemorySettings


def wanted(words: list[str], *, everything: bool, roster: Path | None, found: Path | None) -> Wanted:
    """What is meant by `words`, or with `everything` all that the roster has from the Hub. Raises ConfigError.

    `roster` is the file that was named. One that was only `found` is passed over where nobody needs it: it may be
    unreadable for reasons that are none of a repo's.
    """
    needed = roster is not None or everything or not all("/" in word for word in words)
    path = roster or found
    if path is None and needed:
        unknown = next((word for word in words if "/" not in word), None)
        why = f'"{unknown}" is no Hub repo, which is ORG/NAME' if unknown else "--all goes with a roster"
        raise ConfigError(f"{why}, and there is no roster file here; mlx-roster init writes one, --roster names one")
    try:
        read = load(path) if path is not None else None
    except ConfigError:
        if needed:
            raise
        read = None
    targets = _all(read, path) if everything and read else [one for word in words for one in _meant(word, read, path)]
    once = {(target.repo, target.revision): target for target in reversed(list(targets))}
    return Wanted(tuple(reversed(once.values())), read.memory if read else MemorySettings())


def _all(roster: Roster, path: Path | None) -> Iterable[Target]:
    found = [target for entry in roster.models.values() for target in _repos(entry)]
    if not found:
        raise ConfigError(f"{path} has no model from the Hub: there is nothing to pull")
    return found


def _meant(word: str, roster: Roster | None, path: Path | None) -> Iterator[Target]:
    entry = _entry(word, roster)
    if entry is not None:
        found = list(_repos(entry))
        if not found:
            raise ConfigError(f"{word} is a folder of this machine: there is nothing to pull")
        yield from found
        return
    repo, at, revision = word.partition("@")
    if not is_repo_id(repo) or (at and not revision):
        known = f", and {path} has no model of that name" if path is not None else ""
        raise ConfigError(f'"{word}" is no Hub repo, which is ORG/NAME or ORG/NAME@REVISION{known}')
    yield Target(repo, revision or None, entry_of(repo), listed=False)


def _entry(word: str, roster: Roster | None) -> ModelEntry | None:
    """The entry of the roster that `word` names, if one does."""
    if roster is None:
        return None
    try:
        return roster.models.get(Catalog(roster).resolve(word).model)
    except (ModelNotFound, AdapterNotFound):
        return None


def _repos(entry: ModelEntry) -> Iterator[Target]:
    """All that a model needs from the Hub."""
    if isinstance(entry.source, str):
        yield Target(entry.source, entry.revision, entry, listed=True)
    for origin in (draft.origin for draft in entry.draft):
        if isinstance(origin.source, str):
            draft = entry_of(origin.source).model_copy(update={"trust_remote_code": origin.trust_remote_code})
            yield Target(origin.source, origin.revision, draft, listed=True)
