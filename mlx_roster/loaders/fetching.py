"""The process that downloads: `python -m mlx_roster.loaders.fetching`, started by `loaders/downloads.py` only,
which gives it its own process id.

Its input begins with one line of JSON, a `Request`. It answers with lines of JSON: `done` and `total` in bytes as they
come, then `folder`, or `error`: why not, for a client. End of file on its input means that nobody waits any more, and
ends it at once; what it has of each file stays in the Hub's cache, and the next one goes on from there.

The Hub's client would begin a file that was broken off anew. So the large ones are fetched here, into the client's own
places and under its own locks, and the client does the rest. No mlx, and little of this package: it starts quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from io import FileIO
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TextIO, TypedDict

#: Where our lines go. What others print must not come between them, and some do so while they are imported.
ANSWERS = 1
if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)

from huggingface_hub import (  # noqa: E402
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.file_download import repo_folder_name  # noqa: E402
from huggingface_hub.hf_api import RepoSibling  # noqa: E402
from huggingface_hub.utils._fixes import WeakFileLock  # noqa: E402
from huggingface_hub.utils._headers import build_hf_headers  # noqa: E402
from huggingface_hub.utils._http import hf_raise_for_status  # noqa: E402
from huggingface_hub.utils.tqdm import tqdm  # noqa: E402

from mlx_roster.lifeline import go_first, hold_on_to  # noqa: E402
from mlx_roster.loaders.asking import TransportError, patiently, pause, reason  # noqa: E402
from mlx_roster.loaders.space import lacking, room_for  # noqa: E402

#: Files that are fetched side by side.
SIDE_BY_SIDE = 8

#: How long a connection may bring nothing, in seconds.
SILENCE = 30.0

#: While another process fetches a file, how far it is is looked at this often, in seconds.
GLANCE = 0.5

#: Progress is said this often, in seconds.
TICK = 0.1


class Request(TypedDict):
    """What to download: the files of a repo that match one of the globs in `files`."""

    repo: str
    revision: str | None
    files: list[str]


class Progress:
    """Bytes of all files together. Counted on any thread, and told on one of its own while they change."""

    def __init__(self, total: int, say: Callable[[dict[str, object]], None]) -> None:
        self._total = total
        self._say = say
        self._lock = Lock()
        self._ours = 0
        self._theirs = 0
        Thread(target=self._tell, daemon=True).start()

    def add(self, count: int) -> None:
        """So many more, or fewer, of the files that are fetched here."""
        with self._lock:
            self._ours += count

    def reach(self, count: int) -> None:
        """The Hub's client has come so far with those that it fetches."""
        with self._lock:
            self._theirs = max(self._theirs, count)

    def _tell(self) -> None:
        told = -1
        while True:
            done = min(max(self._ours + self._theirs, 0), self._total)
            if done != told:
                told = done
                self._say({"done": done, "total": self._total})
            time.sleep(TICK)


def fetch(request: Request, say: Callable[[dict[str, object]], None]) -> Path:
    """Download what `request` names into the Hub's cache; its folder there. Raises what `reason` has words for."""
    repo, revision, globs = request["repo"], request["revision"], request["files"]
    listing = patiently(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True))
    wanted = [file for file in listing.siblings or [] if any(fnmatch(file.rfilename, glob) for glob in globs)]
    cache, folder = _places(repo)
    with room_for(lacking(wanted, folder / "blobs"), cache):
        return _fetch_all(request, listing.sha, wanted, Progress(sum(file.size or 0 for file in wanted), say))


def _fetch_all(request: Request, commit: str | None, wanted: list[RepoSibling], progress: Progress) -> Path:
    repo, revision, globs = request["repo"], request["revision"], request["files"]
    # Only what Git keeps by LFS is ever large. Past a limit plain HTTP brings nothing; the Hub's client has more ways.
    large = [file.rfilename for file in wanted if file.lfs and 0 < (file.size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE]
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    for job in as_completed(pool.submit(_fetch, repo, commit, name, progress) for name in large):
        job.result()  # raises: the others end with the process
    bar = _bar(progress)
    return Path(patiently(lambda: snapshot_download(repo, revision=revision, allow_patterns=globs, tqdm_class=bar)))


def _fetch(repo: str, commit: str | None, name: str, progress: Progress) -> None:
    """Fetch one file to where the Hub's client will find it, beginning with what is there."""
    url = hf_hub_url(repo, name, revision=commit)
    metadata = patiently(lambda: get_hf_file_metadata(url))
    etag, size = metadata.etag, metadata.size
    if size is None or etag is None or not re.fullmatch(r"\w[\w.-]*", etag):
        return  # the client may know what to make of it
    cache, folder = _places(repo)
    blob, lock = folder / "blobs" / etag, cache / ".locks" / folder.name / f"{etag}.lock"
    for place in (blob, lock):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(lock, blob, size, progress) as counted:
        if blob.exists():
            progress.add(size - counted)
            return
        partial = blob.with_name(f"{etag}.incomplete")
        resumed = _length(partial)
        progress.add(resumed - counted)
        _receive(url, partial, size, progress)
        if resumed and re.fullmatch("[0-9a-f]{64}", etag) and _sha256(partial) != etag:
            # What was there was no beginning of this.
            partial.unlink()
            progress.add(-size)
            _receive(url, partial, size, progress)
        partial.replace(blob)


def _places(repo: str) -> tuple[Path, Path]:
    """The Hub's cache, and the repo's folder in it."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache, cache / repo_folder_name(repo_id=repo, repo_type="model")


@contextmanager
def _alone(lock: Path, blob: Path, size: int, progress: Progress) -> Iterator[int]:
    """Hold the lock of a file. Whoever has it fetches the same file: what that brings is progress until it lets go.

    Yields how much has been counted of it, which is the caller's to set right.
    """
    counted = 0
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(WeakFileLock(lock, timeout=GLANCE))
                break
            except TimeoutError:
                there = size if blob.exists() else min(_latest(blob), size)
                progress.add(there - counted)
                counted = there
        yield counted


def _latest(blob: Path) -> int:
    """The length of what was last written of a file on its way. The Hub's client has names of its own for such."""
    lengths = [(0, 0)]
    for partial in blob.parent.glob(f"{blob.name}*.incomplete"):
        try:
            status = partial.stat()
        except FileNotFoundError:
            continue  # whole by now, or given up
        lengths.append((status.st_mtime_ns, status.st_size))
    return max(lengths)[1]


def _receive(url: str, partial: Path, size: int, progress: Progress) -> None:
    """Fetch what `partial` lacks of `size` bytes, over as many connections as it takes while each brings something."""
    fruitless, all_of_it = 0, False
    while (before := _length(partial)) < size:
        try:
            all_of_it = _append(url, partial, before, progress)
        except TransportError as error:
            fruitless = 0 if _length(partial) > before else fruitless + 1
            time.sleep(pause(error, fruitless))
        else:
            if all_of_it or _length(partial) == before:
                break
    if (there := _length(partial)) != size:
        if all_of_it or there > size:
            # It is another file, or a page that says why not: nothing to go on from.
            partial.unlink()
            progress.add(-there)
        raise OSError(None, f"the Hub sent {there} bytes of a file of {size}")


def _append(url: str, partial: Path, begin: int, progress: Progress) -> bool:
    """Fetch what there is from `begin` on. Whether the answer was to be the whole file, from its first byte on."""
    # Compressed, a file would have no ranges.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={begin}-"}
    if not begin:
        del headers["Range"]
    with get_session().stream("GET", url, headers=headers, timeout=SILENCE) as response:
        hf_raise_for_status(response)
        with partial.open("ab", buffering=0) as file:
            if begin and response.status_code != 206:
                file.truncate(0)
                progress.add(-begin)
            for chunk in response.iter_bytes():
                write(file, chunk)
                progress.add(len(chunk))
        return response.status_code != 206


def write(file: FileIO, chunk: bytes) -> None:
    """All of `chunk`: a disk with room for a part takes that part, and only refuses the next one."""
    while chunk:
        chunk = chunk[file.write(chunk) :]


def _length(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bar(progress: Progress) -> type[tqdm]:
    """A progress bar that draws nothing.

    The Hub's client makes several: of files, of bytes received and of bytes written. The furthest of the latter two
    counts, so that what is reported only grows.
    """

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._done = 0
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                self._done += int(n or 0)
                progress.reach(self._done)

    return Bar


def main() -> None:
    answers: TextIO = os.fdopen(ANSWERS, "w", buffering=1)
    saying = Lock()

    def say(answer: dict[str, object]) -> None:
        with saying:
            answers.write(json.dumps(answer) + "\n")

    hold_on_to(int(sys.argv[1]))
    go_first()
    request: Request = json.loads(sys.stdin.buffer.readline())
    Thread(target=_watch, daemon=True).start()
    try:
        say({"folder": str(fetch(request, say))})
    except (TransportError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError is all that hf_xet says of a broken transfer, ValueError refuses a file too large for plain HTTP.
        say({"error": reason(error, request["repo"], request["revision"])})
    # Other files may still be under way: threads that the interpreter would wait for.
    os._exit(0)


def _watch() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
