"""Whether a download fits onto the disk: asked before it begins, and said where the disk is full all the same."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.hf_api import RepoSibling

#: What a write fails with that finds no room: on the disk, in somebody's quota, in a file as this file system has them.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(OSError):
    """The disk of the Hub's cache has no room for a download. `strerror` is for clients: it names no path."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.ENOSPC, words)


def lacking(files: Sequence[RepoSibling], blobs: Path) -> int:
    """Bytes of `files` that are not in `blobs` yet, where the Hub's client keeps them. Blocks."""
    return sum(max(0, (file.size or 0) - _here(file, blobs)) for file in files)


def _here(file: RepoSibling, blobs: Path) -> int:
    """Bytes of it that are here: the client names whole and broken-off files by the same hash."""
    name = file.lfs.sha256 if file.lfs is not None else file.blob_id
    if not name:
        return 0
    found = [blob.stat().st_size for blob in (blobs / name, blobs / f"{name}.incomplete") if blob.is_file()]
    return max(found, default=0)


@contextmanager
def room_for(size: int, folder: Path) -> Iterator[None]:
    """The block writes `size` bytes somewhere below `folder`, which may be yet to be made.

    Raises DiskFull where they do not fit, before the block or in it.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise DiskFull(
            f"{_spoken(size)} are to be downloaded, and the disk of the Hub cache has no more than {_spoken(free)} free"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _full(size) from error
    except RuntimeError as error:
        # All that hf_xet says of any failure.
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise _full(size) from error


def _full(size: int) -> DiskFull:
    return DiskFull(
        f"the disk of the Hub cache is full, and {_spoken(size)} were to be downloaded; what has come stays, and "
        "another try goes on from there"
    )


def _spoken(size: int) -> str:
    from mlx_roster.config.units import format_bytes  # all of `config` comes with it: only where it is needed

    return format_bytes(size)
