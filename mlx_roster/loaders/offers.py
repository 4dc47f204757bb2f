"""What a Hub repo offers, asked before any of its weights are downloaded: whether it can be served, and what it takes.

For the command line: it asks the Hub from its own process, which a server never does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.tqdm import tqdm

from mlx_roster.config import ModelEntry, format_bytes
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders.asking import TransportError, patiently, reason
from mlx_roster.loaders.discover import ADAPTER_FILES, TOKENIZERS, why_not
from mlx_roster.loaders.sizes import Estimate, Weights, reserve_of
from mlx_roster.loaders.source import globs, offline_by_environment
from mlx_roster.loaders.space import DiskFull, room_for

T = TypeVar("T")

#: Bytes of a config.json, or of an adapter's, at most: they are read before anything else of the repo is.
MAX_CONFIG = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Offer:
    """A repo of the Hub that can be served, as a model or as an adapter for one.

    `size` are the bytes of what would be downloaded, in so many `files`; of these, `missing` bytes are not here yet.
    """

    repo: str
    revision: str | None
    commit: str | None
    globs: tuple[str, ...]
    size: int
    missing: int
    files: int
    adapter: bool
    #: What a model is expected to take once loaded; None for an adapter.
    estimate: Estimate | None
    #: The model that an adapter was trained over, as it says itself.
    base: str | None = None


class _Silent(tqdm):
    """A progress bar that draws nothing: what is fetched here is small."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]


def look(repo: str, revision: str | None, entry: ModelEntry, headroom: float) -> Offer:
    """Ask the Hub about `repo`, which `entry` is to serve. Blocks.

    No more than its config is fetched. Raises LoadFailed, with the reason and what to do, where it cannot be had or
    served.
    """
    code = entry.trust_remote_code
    if offline_by_environment():
        raise LoadFailed("HF_HUB_OFFLINE is set; unset it to download")
    listing = _asked(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True), repo, revision)
    siblings = listing.siblings or []
    names = {file.rfilename for file in siblings}
    adapter = ADAPTER_FILES[0] in names and not names.isdisjoint(ADAPTER_FILES[1:]) and not _has_weights(names)
    if not adapter and (problem := unservable(names)):
        raise LoadFailed(f"it cannot be served: {problem}")
    wanted = ADAPTER_FILES if adapter else tuple(globs(code=code))
    files = [file for file in siblings if any(fnmatch(file.rfilename, glob) for glob in wanted)]
    size = sum(file.size or 0 for file in files)
    missing = size - sum(min(_here(repo, listing.sha, file), file.size or 0) for file in files)
    config = _config(repo, listing.sha, siblings, ADAPTER_FILES[0] if adapter else "config.json")
    if not adapter and (problem := why_not(config, code=code)):
        raise LoadFailed(f"it cannot be served: {problem}")
    config = config if isinstance(config, dict) else {}
    base = config.get("base_model_name_or_path") or config.get("model")
    return Offer(
        repo=repo,
        revision=revision,
        commit=listing.sha,
        globs=wanted,
        size=size,
        missing=missing,
        files=len(files),
        adapter=adapter,
        estimate=None if adapter else _estimate(files, config, entry, headroom),
        base=base if adapter and isinstance(base, str) else None,
    )


def check_space(offer: Offer) -> None:
    """Raises LoadFailed where the disk cannot hold what is `missing`."""
    try:
        with room_for(offer.missing, Path(constants.HF_HUB_CACHE).expanduser().absolute()):
            pass
    except DiskFull as full:
        raise LoadFailed(f"{full.strerror}; free some, or have HF_HOME name a folder on another disk") from full


def unservable(names: set[str]) -> str | None:
    """Why a repo of these files is no model for mlx-lm, None if it may be one."""
    if _has_weights(names) and "config.json" in names:
        return None if names.intersection(TOKENIZERS) else "it has no tokenizer"
    if any(name.endswith(".gguf") for name in names):
        return "it has GGUF files only, which are llama.cpp's; look for its MLX or safetensors repo"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names) and "config.json" in names:
        return "its weights are pickled, which is never read; look for a revision with safetensors"
    missing = "model*.safetensors" if "config.json" in names else "config.json"
    return f"it has no {missing}, so it is no model of mlx-lm's"


def _has_weights(names: set[str]) -> bool:
    return any(fnmatch(name, "model*.safetensors") for name in names)


def _asked(ask: Callable[[], T], repo: str, revision: str | None) -> T:
    """What the Hub says. Raises LoadFailed with a remedy."""
    try:
        return patiently(ask)
    except GatedRepoError as error:
        raise LoadFailed(
            f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}, then log in with `hf auth login` or "
            "set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise LoadFailed(
            f"the Hub has no {repo}, or it is private: check the spelling, or log in with `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise LoadFailed(reason(error, repo, revision)) from error
    except (TransportError, OSError, ValueError) as error:
        raise LoadFailed(
            f"the Hub cannot be reached to ask for {repo}: mlx-roster doctor says more of the network"
        ) from error


def _config(repo: str, commit: str | None, siblings: Sequence[RepoSibling], name: str) -> object:
    size = next((file.size or 0 for file in siblings if file.rfilename == name), 0)
    if size > MAX_CONFIG:
        raise LoadFailed(f"it cannot be served: its {name} has {format_bytes(size)}")
    path = _asked(lambda: hf_hub_download(repo, name, revision=commit, tqdm_class=_Silent), repo, commit)
    try:
        found: Any = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LoadFailed(f"it cannot be served: its {name} is not valid JSON") from error
    return found


def _here(repo: str, commit: str | None, file: RepoSibling) -> int:
    """Bytes of this file that are in the cache: under this commit or, where it is large, under any, or on their way."""
    home = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
    blob = home / "blobs" / file.lfs.sha256 if file.lfs is not None else None
    places = [] if blob is None else [blob, blob.with_name(f"{blob.name}.incomplete")]
    if commit is not None:
        places.append(home / "snapshots" / commit / file.rfilename)
    return max((place.stat().st_size for place in places if place.is_file()), default=0)


def _estimate(files: Sequence[RepoSibling], config: dict[str, Any], entry: ModelEntry, headroom: float) -> Estimate:
    """As `sizes.estimate` will say, without adapters and drafts, and without the headers of files not here."""
    size = sum(file.size or 0 for file in files if fnmatch(file.rfilename, "model*.safetensors"))
    return Estimate(size, 0, headroom, reserve_of(entry, Weights(size, 2), config))
