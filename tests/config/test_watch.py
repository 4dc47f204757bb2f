from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.config.watch import Identity, Settling, changes

A, B, C = (Identity(1, inode, 0, 10) for inode in (1, 2, 3))


def seen(known: Identity | None, *looks: Identity | None) -> list[bool]:
    settling = Settling(known)
    return [settling.look(found) for found in looks]


def test_what_stays_has_not_changed() -> None:
    assert seen(A, A, A) == [False, False]


def test_a_change_counts_once_and_only_when_it_has_settled() -> None:
    assert seen(A, B, B, B) == [False, True, False]
    assert seen(A, B, C, C) == [False, False, True]
    assert seen(A, B, A, A) == [False, False, False]


def test_a_file_that_is_gone_has_not_changed() -> None:
    assert seen(A, None, None, A, A) == [False] * 4
    assert seen(A, None, B, B) == [False, False, True]
    assert seen(A, B, None, B, B) == [False, False, False, True]
    assert seen(None, None, A, A) == [False, False, True]


@given(st.sampled_from([A, B, C]), st.lists(st.sampled_from([A, B, C, None]), max_size=20))
def test_whatever_happens_the_last_version_is_told_once_it_stays(known: Identity, looks: list[Identity | None]) -> None:
    settling, told = Settling(known), known
    for look in [*looks, B, B]:
        if settling.look(look):
            assert look is not None
            assert look != told
            told = look
    assert told == B
    assert not settling.look(B)


class File:
    """A file that is looked at by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settling = Settling(Identity.of(path))

    def changed(self) -> bool:
        """Whether as many looks as a change takes tell one; one more must not."""
        told = [self.settling.look(Identity.of(self.path)) for _ in range(3)]
        assert sum(told) <= 1
        return any(told)

    def is_there(self) -> bool:
        return self.settling.there


def test_symlink_swap_and_vanishing_file(tmp_path: Path) -> None:
    # As Kubernetes mounts a ConfigMap: the file is a link into ..data, which is a link that is swapped.
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "roster.yaml").write_text("same size")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "roster.yaml").symlink_to("..data/roster.yaml")
    file = File(tmp_path / "roster.yaml")
    assert not file.changed()

    (tmp_path / "..data_tmp").symlink_to("two")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    assert file.changed()

    (tmp_path / "..data").unlink()
    assert not file.changed()
    assert not file.is_there()
    (tmp_path / "..data").symlink_to("two")
    assert not file.changed()
    assert file.is_there()

    (tmp_path / "..data").unlink()
    assert not file.changed()
    (tmp_path / "..data").symlink_to("one")
    assert file.changed()


def test_every_way_of_writing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text("first")
    file = File(path)
    with path.open("a") as appended:
        appended.write(" more")
    assert file.changed()
    (tmp_path / "new").write_text("other text")
    (tmp_path / "new").rename(path)
    assert file.changed()
    os.utime(path, ns=(0, 0))
    assert file.changed()


@pytest.mark.parametrize("path", ["missing", "file/below", "nul\0", "x" * 5000, "loop"])
def test_what_cannot_be_seen_is_not_there(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert Identity.of(tmp_path / path) is None


def test_changes_are_told_one_by_one_and_a_loss_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text("first")

    async def test() -> None:
        told = changes(path, Identity.of(path), interval=0)
        for text in ("the second", "the very third"):
            path.write_text(text)
            await anext(told)
        path.unlink()
        with caplog.at_level(logging.WARNING):
            following = asyncio.ensure_future(anext(told))
            while not caplog.records:  # noqa: ASYNC110  there is nothing else to wait for
                await asyncio.sleep(0)
        path.write_text("back again, and longer")
        await following
        assert [record.getMessage().partition(" is gone")[0] for record in caplog.records] == [str(path)]
        await told.aclose()

    asyncio.run(test())
