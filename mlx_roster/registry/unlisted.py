"""What a request may name beyond the roster, where its `unlisted` says so: Hub repos, and folders of the server's own.

Disk is touched only where `unlisted.paths` is on, and then with a few calls; the network never.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from cachetools import LRUCache

from mlx_roster.config import AdapterEntry, ModelEntry, UnlistedSettings
from mlx_roster.config.paths import is_repo_id

#: Longer words are no path.
LONGEST = 1024

#: Entries that are kept of those made on the fly, of models and of adapters.
KEPT = 256


class Unlisted:
    """The models and adapters that the rules of one roster allow. A model's name is a repo id, or its folder's path
    relative to `directory`, symlinks resolved; an adapter's is always such a path."""

    def __init__(self, rules: UnlistedSettings, directory: Path) -> None:
        self._rules = rules
        self._directory = directory
        self._models: LRUCache[str, ModelEntry] = LRUCache(KEPT)
        self._adapters: LRUCache[str, AdapterEntry] = LRUCache(KEPT)

    def model(self, words: str, *, disk: bool = True) -> str | None:
        """The name of the model that a request's `words` mean. A folder comes before a repo, as in a roster; without
        `disk`, folders are not looked at."""
        if disk and self._rules.paths and (found := self._folder(words, _is_model)) is not None:
            name, folder = found
            self._models[name] = ModelEntry(source=folder)
            return name
        if is_repo_id(words) and any(fnmatchcase(words, glob) for glob in self._rules.hub):
            # Validation would take it for a folder where there is one of that name.
            self._models[words] = ModelEntry(source=Path("/")).model_copy(update={"source": words})
            return words
        return None

    def place(self, entry: ModelEntry) -> Path | str | None:
        """What requests could name beside a listed `entry` and mean the same: its folder's real place, or its repo.
        None where they cannot. Touches the disk for a folder, if `unlisted.paths` is on."""
        if entry.revision is not None:
            return None
        if isinstance(entry.source, str):
            return entry.source
        try:
            return entry.source.resolve(strict=True) if self._rules.paths else None
        except (OSError, RuntimeError):
            return None  # not there, not to be seen, or symlinks in a circle

    def adapter(self, words: str) -> str | None:
        """The name of the adapter that a request's `words` mean."""
        if not self._rules.paths or (found := self._folder(words, _is_adapter)) is None:
            return None
        name, folder = found
        self._adapters[name] = AdapterEntry(source=folder)
        return name

    def model_entry(self, name: str) -> ModelEntry | None:
        """The entry of the model of that name."""
        if name not in self._models and self.model(name) != name:
            return None
        return self._models.get(name)

    def adapter_entry(self, name: str) -> AdapterEntry | None:
        """The entry of the adapter of that name."""
        if name not in self._adapters and self.adapter(name) != name:
            return None
        return self._adapters.get(name)

    def _folder(self, words: str, fits: Callable[[Path], bool]) -> tuple[str, Path] | None:
        """A folder below the server's that `fits`, by a path relative to that: its real name and its real place."""
        if not _is_modest(words):
            return None
        try:
            root = self._directory.resolve(strict=True)
            real = (root / words).resolve(strict=True)
            if real == root or not real.is_relative_to(root) or not fits(real):
                return None
        except (OSError, RuntimeError):
            return None  # not there, not to be seen, or symlinks in a circle
        name = real.relative_to(root).as_posix()
        return (name, real) if _is_modest(name) else None


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() or any(folder.glob("*.safetensors"))


def _is_modest(path: str) -> bool:
    """Whether `path` can be tried at all: relative, never upward, and nothing that a name of ours cannot have."""
    return (
        0 < len(path) <= LONGEST
        and path.isprintable()
        and not path.startswith(("/", "~"))
        # A colon divides a model from its adapter, and is in drive letters and URLs.
        and not any(character in path for character in ":\\")
        and ".." not in path.split("/")
    )
