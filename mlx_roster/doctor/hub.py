"""The Hub cache, and the way to the Hub, as they are now."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mlx_roster.doctor.facts import Cache, Hub

#: How long the files of the cache are counted, in seconds.
COUNTING = 1.5

#: How long the Hub may take to answer, in seconds.
ANSWER = 2.5


def cache_facts() -> Cache:
    """Of the folder that downloads go to. Blocks on the disk, but not for long."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser()
    nearest = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    writable = os.access(nearest, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(nearest).free
    except OSError:
        free = None
    if not folder.is_dir():
        return Cache(folder, exists=False, writable=writable, free=free, size=0)
    deadline = time.monotonic() + COUNTING
    total, models, counted = 0, 0, True
    unfinished, broken = list[str](), list[str]()
    for repo in _repos(folder):
        name = repo.name.removeprefix("models--").replace("--", "/")
        models += 1
        if time.monotonic() > deadline:
            counted = False
            break
        size, partial = _blobs(repo / "blobs")
        total += size
        if partial:
            unfinished.append(name)
        if _dangling(repo / "snapshots"):
            broken.append(name)
    return Cache(
        folder,
        exists=True,
        writable=writable,
        free=free,
        size=total if counted else None,
        models=models,
        unfinished=tuple(unfinished),
        broken=tuple(broken),
    )


def hub_facts(*, ask: bool) -> Hub:
    """Of the Hub; it is asked whether it is there only where `ask` says so, and nothing is told it but the question."""
    from huggingface_hub import constants, get_token

    offline = "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None
    reachable = _answers(constants.ENDPOINT) if ask and offline is None else None
    return Hub(offline, reachable, token=bool(get_token()))


def _answers(endpoint: str) -> bool:
    import httpx2

    try:
        with httpx2.Client(timeout=ANSWER) as client:  # through the environment's proxy, as downloads go
            client.head(endpoint)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, ValueError):
        return False
    return True


def _repos(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.glob("models--*--*") if path.is_dir())
    except OSError:
        return


def _blobs(folder: Path) -> tuple[int, bool]:
    """Bytes that the files of a repo take, and whether one of them is not whole."""
    size, partial = 0, False
    try:
        with os.scandir(folder) as files:
            for file in files:
                size += file.stat().st_size
                partial = partial or file.name.endswith(".incomplete")
    except OSError:
        pass
    return size, partial


def _dangling(snapshots: Path) -> bool:
    """Whether a snapshot names a file that is not there."""
    try:
        return any(path.is_symlink() and not path.exists() for path in snapshots.glob("*/**/*"))
    except OSError:
        return True
