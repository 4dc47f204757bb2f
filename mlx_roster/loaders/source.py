"""Where a model's files are: a folder of this machine, or the Hub's cache, filled first where need be. No mlx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from mlx_roster.config.model import ModelEntry
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.sizes import shards

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

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


def resolve(name: str, source: Path | str, revision: str | None, on_progress: OnProgress) -> Path:
    """The folder with the files of the model that the roster calls `name`, downloaded where they are not here.

    Blocks, perhaps for hours: call it on a thread. Raises LoadFailed. What `on_progress` raises ends the download.
    """
    if isinstance(source, str):
        folder = cached(source, revision) or _download(name, source, revision, on_progress)
    else:
        folder = source
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
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    # Its base is the error of the HTTP library, whichever one this version of huggingface_hub uses.
    transport_error = HfHubHTTPError.__bases__[0]
    try:
        listing = HfApi().model_info(repo, revision=revision, files_metadata=True)
        wanted = filter_repo_objects(
            listing.siblings or [], allow_patterns=list(_FILES), key=lambda sibling: sibling.rfilename
        )
        bar = _bar(sum(sibling.size or 0 for sibling in wanted), on_progress)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES), tqdm_class=bar))
    except GatedRepoError as error:
        reason, cause = f"{repo} is gated: accept its terms on the Hub and set HF_TOKEN", error
    except RepositoryNotFoundError as error:
        reason, cause = f"the Hub has no {repo}, or it is private and HF_TOKEN does not open it", error
    except RevisionNotFoundError as error:
        reason, cause = f"{repo} has no revision {revision}", error
    raise LoadFailed(f"model {name} cannot be downloaded: {reason}") from cause


def _bar(total: int, on_progress: OnProgress) -> type[tqdm[Any]]:
    """A progress bar that draws nothing and reports the bytes of all files together.

    The Hub's client makes several: of files, of bytes received and of bytes written. The furthest of the latter two
    counts.
    """
    from huggingface_hub.utils import tqdm

    lock = Lock()
    furthest = 0

    class Bar(tqdm[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done = kwargs.get("initial") or 0
            super().__init__(*args, **{**kwargs, "disable": True})

    return Bar
