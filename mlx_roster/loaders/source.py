"""Where a model's files are: a folder of this machine, or the Hub's cache. Never touches the network. No mlx."""

from __future__ import annotations

from pathlib import Path

from mlx_roster.config import ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import shards

# huggingface_hub takes longer to import than the rest of the server process together, and a roster of local folders
# never needs it: so it is imported in the functions below.

#: What mlx-lm reads of a repo, less `*.py`.
_FILES = (
    "*.json",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)


def globs(*, code: bool) -> list[str]:
    """What is needed of a repo. A model's own code is fetched only where it may also be run."""
    return [*_FILES, "*.py"] if code else [*_FILES]


def cached(repo: str, revision: str | None, *, code: bool = False) -> Path | None:
    """The folder of a Hub repo in the local cache, if all that is needed of it is there."""
    from huggingface_hub import snapshot_download

    try:
        patterns = globs(code=code)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        check_folder(folder)
    except (OSError, LoadFailed):
        # Not there, not to be read, or the rest of a download that was broken off.
        return None
    return folder


def draft_folders(entry: ModelEntry) -> list[Path | None]:
    """The folders of what drafts for a model, None for one that is not on this machine."""
    origins = [draft.origin for draft in entry.draft]
    return [one.source if isinstance(one.source, Path) else cached(one.source, one.revision) for one in origins]


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE, or what else the Hub's client heeds, keeps this machine off the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def check_folder(folder: Path) -> None:
    """Raises LoadFailed, without naming the folder, where `folder` cannot be a model."""
    if not folder.is_dir():
        raise LoadFailed("its folder does not exist")
    if not (folder / "config.json").is_file():
        raise LoadFailed("there is no config.json")
    shards(folder)
