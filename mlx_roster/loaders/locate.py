"""Finding a model before it is loaded: where it is on this machine, and what it will take."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlx_roster.config import DraftEntry, ModelEntry
from mlx_roster.config.drafts import Origin
from mlx_roster.core import DraftSource, Located
from mlx_roster.errors import LoadFailed
from mlx_roster.loaders import sizes, source
from mlx_roster.loaders.downloads import Download

#: Downloads that go on at once: each is a process with connections of its own.
AT_ONCE = 4


class Locator:
    """Local folders as they are, Hub repos through the local cache. Satisfies `registry.ports.Sources`.

    The disk is left to threads and the network to processes: nothing here holds up the event loop. `headroom` and
    `offline` are the roster's, and may be set anew at any time.
    """

    def __init__(self, headroom: float, *, offline: bool = False) -> None:
        self.headroom = headroom
        self.offline = offline
        self._downloads: dict[tuple[str, str | None], Download] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        #: Bytes of what has come already, by the names of models that need more than one repo.
        self._here: dict[str, int] = {}

    async def locate(self, name: str, entry: ModelEntry) -> Located:
        """See `registry.ports.Sources`."""
        try:
            origin = Origin(entry.source, entry.revision, entry.trust_remote_code)
            folder = await self._folder(name, f"model {name}", origin)
            drafts = [await self._draft(name, draft) for draft in entry.draft]
        finally:
            self._here.pop(name, None)
        return await asyncio.to_thread(_located, folder, entry, self.headroom, tuple(drafts))

    def progress(self) -> Mapping[str, tuple[int, int]]:
        """See `registry.ports.Sources`. A download is not there before it is known how large it is."""
        going = [(name, one.progress) for one in self._downloads.values() if one.progress for name in one.waiting]
        before = self._here
        return {name: (done + before.get(name, 0), total + before.get(name, 0)) for name, (done, total) in going}

    def waiting(self) -> Collection[str]:
        """See `registry.ports.Sources`."""
        return {name for one in self._downloads.values() if not one.begun for name in one.waiting}

    async def _draft(self, name: str, draft: DraftEntry) -> DraftSource:
        folder = await self._folder(name, f"draft model {draft.name} of {name}", draft.origin)
        return DraftSource(draft.name, str(folder), draft.tokens, draft.origin.trust_remote_code)

    async def _folder(self, name: str, what: str, origin: Origin) -> Path:
        """The folder of `what`, which `name` waits for."""
        if isinstance(origin.source, Path):
            folder = origin.source
        else:
            folder = await self._from_hub(name, what, origin.source, origin)
        with _naming(what, "loaded"):
            await asyncio.to_thread(source.check_folder, folder)
        return folder

    async def _from_hub(self, name: str, what: str, repo: str, origin: Origin) -> Path:
        revision, code = origin.revision, origin.trust_remote_code
        folder = await asyncio.to_thread(source.cached, repo, revision, code=code)
        if folder is not None:
            return folder
        missing = f"{f'revision {revision} of {repo}' if revision else repo} is not in the local cache"
        with _naming(what, "loaded"):
            if self.offline:
                raise LoadFailed(f"{missing}, and the roster says offline")
            if await asyncio.to_thread(source.offline_by_environment):
                raise LoadFailed(f"{missing}, and HF_HUB_OFFLINE is set")
        with _naming(what, "downloaded"):
            return await self._download(name, repo, revision, code=code)

    async def _download(self, name: str, repo: str, revision: str | None, *, code: bool) -> Path:
        """Join the download of `repo`, or begin one. One that began without the model's code is followed by another."""
        while True:
            download = self._downloads.get((repo, revision))
            if download is None or not download.open:
                globs = source.globs(code=code)
                download = Download({"repo": repo, "revision": revision, "files": globs}, self._turns)
                self._downloads[repo, revision] = download
            try:
                folder = await download.join(name)
                self._here[name] = self._here.get(name, 0) + (download.progress or (0, 0))[1]
            finally:
                if not download.open and self._downloads.get((repo, revision)) is download:
                    del self._downloads[repo, revision]
            if "*.py" in download.request["files"] or not code:
                return folder


@contextmanager
def _naming(model: str, what: str) -> Iterator[None]:
    """Which model it is, before the reason of a failure, which others may share."""
    try:
        yield
    except LoadFailed as error:
        raise LoadFailed(f"{model} cannot be {what}: {error.message}") from error


def _located(folder: Path, entry: ModelEntry, headroom: float, drafts: tuple[DraftSource, ...]) -> Located:
    """What the model in `folder` will take. Blocks. Raises LoadFailed."""
    estimate = sizes.estimate(folder, entry, headroom, [Path(draft.path) for draft in drafts])
    return Located(str(folder), estimate.total, estimate.bank, estimate.kv, drafts)
