"""Downloads and a disk that is full: really full where the kernel has a device for it, and too small for a claim."""

from __future__ import annotations

import asyncio
import errno
import resource
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from mlx_roster.loaders.fetching import write
from mlx_roster.loaders.locate import Locator
from mlx_roster.loaders.space import DiskFull, room_for
from tests.loaders.fake_hub import FakeHub, etag
from tests.loaders.hub_cache import FILES, REPO
from tests.loaders.test_locate import BIG, PART, failure, fetchers, held, locate, locating, whole
from tests.looking import until


def blobs(cache: Path) -> Path:
    return cache / f"models--{REPO.replace('/', '--')}" / "blobs"


def test_what_cannot_fit_is_refused_before_a_byte_of_it_comes(hub: FakeHub) -> None:
    hub.sizes[BIG] = 2**60
    said = failure()
    assert said.startswith("model atlas cannot be downloaded: 1048576 TiB are to be downloaded, and the disk of ")
    assert said.endswith(" free")
    assert hub.downloaded == set()
    del hub.sizes[BIG]
    assert whole(locate().path)


def test_what_is_here_already_needs_no_room(hub: FakeHub, cache: Path) -> None:
    located = locate()
    # Of a repo whose largest file is here, only the rest counts.
    (Path(located.path) / "config.json").unlink()
    (blobs(cache) / etag("config.json", FILES["config.json"])).unlink()
    hub.begun.clear()
    assert whole(locate().path)
    assert {name for name, _ in hub.begun} == {"config.json"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_said_and_a_later_try_works(hub: FakeHub, cache: Path) -> None:
    partial = blobs(cache) / f"{etag(BIG, FILES[BIG])}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    said = failure()
    assert "the disk of the Hub cache is full, and " in said
    assert said.endswith(" were to be downloaded; what has come stays, and another try goes on from there")
    assert str(cache) not in said
    partial.unlink()
    assert whole(locate().path)


def test_what_came_before_the_disk_was_full_is_not_fetched_again(hub: FakeHub, cache: Path) -> None:
    """A limit on the size of files stands in for a disk that has room for a part: what the kernel says is alike."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    hub.gates[BIG] = PART

    async def test() -> None:
        locator = Locator(0)
        first = asyncio.create_task(locating(locator=locator))
        await held(hub)
        (fetcher,) = fetchers()
        resource.prlimit(fetcher.pid, resource.RLIMIT_FSIZE, (PART, hard))
        hub.open_gate(BIG)
        (outcome,) = await asyncio.gather(first, return_exceptions=True)
        assert "the disk of the Hub cache is full" in str(outcome)
        await until(lambda: not fetchers())

    asyncio.run(test())
    assert (blobs(cache) / f"{etag(BIG, FILES[BIG])}.incomplete").stat().st_size == PART
    assert whole(locate().path)
    assert (BIG, PART) in hub.begun


def test_what_a_nearly_full_disk_has_taken_a_part_of_is_written_to_its_end(tmp_path: Path) -> None:
    class NearlyFull(FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(memoryview(data)[:3])

    with NearlyFull(tmp_path / "partial", "ab") as file:
        write(file, b"all of it")
    assert (tmp_path / "partial").read_bytes() == b"all of it"


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), room_for(1, tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(RuntimeError, match="broken"), room_for(1, tmp_path):
        raise RuntimeError("broken")
    with pytest.raises(DiskFull), room_for(1, tmp_path / "not" / "yet"):
        raise RuntimeError("IO Error: No space left on device (os error 28)")
