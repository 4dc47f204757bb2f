"""Where a model's files are: a folder of this machine, or the Hub's cache, filled first where need be. No mlx."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from mlx_roster.config.model import ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import shards

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

# huggingface_hub takes longer to import than the rest of the server process together, and a roster of local folders
# never needs it: so it is imported in the functions below.

#: Called with (bytes here, bytes in all), from the threads that download.
OnProgress = Callable[[int, int], None]

#: What mlx-lm reads of a repo, less `*.py`: a model's own code is never run, so it is not fetched either.
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


def is_local(entry: ModelEntry) -> bool:
    """Whether the entry's source is a folder, which is never downloaded."""
    return isinstance(entry.source, Path)


def resolve(name: str, entry: ModelEntry, on_progress: OnProgress) -> Path:
    """The folder with the files of `entry`, the model that the roster calls `name`, downloaded where they are not here.

    Blocks, perhaps for hours: call it on a thread. Raises LoadFailed. What `on_progress` raises ends the download.
    """
    if isinstance(entry.source, Path):
        folder = entry.source
    else:
        repo, revision = entry.source, entry.revision
        folder = cached(repo, revision) or _download(name, repo, revision, on_progress)
    try:
        check_folder(folder)
    except LoadFailed as error:
        raise LoadFailed(f"model {name} cannot be loaded: {error.message}") from error
    return folder


def cached(repo: str, revision: str | None) -> Path | None:
    """The folder of a Hub repo in the local cache, if all of it is there. Never touches the network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES), local_files_only=True))
        check_folder(folder)
    except (OSError, LoadFailed):
        # Not there, not to be read, or the rest of a download that was broken off.
        return None
    return folder


def check_folder(folder: Path) -> None:
    """Raises LoadFailed, without naming the folder, where `folder` cannot be a model."""
    if not folder.is_dir():
        raise LoadFailed("its folder does not exist")
    if not (folder / "config.json").is_file():
        raise LoadFailed("there is no config.json")
    shards(folder)


def _download(name: str, repo: str, revision: str | None, on_progress: OnProgress) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The base is the error of the HTTP library, whichever one this version of the Hub's client is built on.
    transport_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        listing = HfApi().model_info(repo, revision=revision, files_metadata=True)
        wanted = (file for file in listing.siblings or [] if any(fnmatch(file.rfilename, glob) for glob in _FILES))
        bar = _bar(sum(file.size or 0 for file in wanted), on_progress)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES), tqdm_class=bar))
    except (transport_error, OSError, RuntimeError, ValueError) as error:
        # RuntimeError is all that hf_xet says of a broken transfer, ValueError refuses a file too large for plain HTTP.
        raise LoadFailed(f"model {name} cannot be downloaded: {_reason(error, repo, revision)}") from error


def _reason(error: Exception, repo: str, revision: str | None) -> str:
    """Our own words: the client's name paths of this machine."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return f"{repo} is gated; accept its terms on the Hub and set HF_TOKEN"
        case RepositoryNotFoundError():
            return f"the Hub has no {repo}, or it is private and HF_TOKEN does not open it"
        case RevisionNotFoundError():
            return f"{repo} has no revision {revision}"
        case HfHubHTTPError():
            return f"the Hub answered {error.response.status_code} for {repo}"
        case OSError(strerror=str() as words) if not isinstance(error, LocalEntryNotFoundError):
            return words
    return f"{repo} is not in the local cache, and the Hub cannot be reached or broke off"


def _bar(total: int, on_progress: OnProgress) -> type[tqdm]:
    """A progress bar that draws nothing and reports the bytes of all files together.

    The Hub's client makes several: of files, of bytes received and of bytes written. The furthest of the latter two
    counts, so that what is reported only grows.
    """
    from huggingface_hub.utils.tqdm import tqdm

    lock = Lock()
    furthest = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done = 0
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            if self._counts_bytes:
                with lock:
                    self._done += int(n or 0)
                    if furthest < self._done <= total:
                        furthest = self._done
                        on_progress(furthest, total)

    return Bar
