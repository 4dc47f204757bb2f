"""Models from a Hub: real download processes, and a real HTTP server in the Hub's place."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from huggingface_hub.errors import HfHubHTTPError

from mlx_roster.config import ModelEntry
from mlx_roster.core import Located
from mlx_roster.errors import LoadFailed
from mlx_roster.lifeline import SACRIFICE
from mlx_roster.loaders import asking
from mlx_roster.loaders.locate import AT_ONCE, Locator
from mlx_roster.loaders.source import cached
from tests.loaders import hub_cache
from tests.loaders.fake_hub import FakeHub, commit, etag
from tests.loaders.hub_cache import FILES, REPO, WANTED
from tests.looking import until
from tests.serving import PATIENCE

BIG = "model-1.safetensors"

#: As much of BIG as is let through before something happens: a third.
PART = 100_000


def entry(source: Path | str = REPO, revision: str | None = None, *, trusted: bool = False) -> ModelEntry:
    return ModelEntry.model_validate({"source": source, "revision": revision, "trust_remote_code": trusted})


def locating(model: ModelEntry | None = None, locator: Locator | None = None) -> Coroutine[Any, Any, Located]:
    return (locator or Locator(0)).locate("atlas", model or entry())


def locate(model: ModelEntry | None = None, *, offline: bool = False) -> Located:
    async def one() -> Located:
        return await locating(model, Locator(0, offline=offline))

    return asyncio.run(one())


def failure(model: ModelEntry | None = None, *, offline: bool = False) -> str:
    with pytest.raises(LoadFailed) as failed:
        locate(model, offline=offline)
    return failed.value.message


async def held(hub: FakeHub, name: str = BIG, times: int = 1) -> None:
    await asyncio.to_thread(hub.wait_held, name, times)


def fetchers() -> list[psutil.Process]:
    """The download processes that there are."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "mlx_roster.loaders.fetching" in child.cmdline():
                found.append(child)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Ours, that is: on a busy machine asyncio has some, too."""
    return [one for one in caplog.records if one.levelno >= logging.WARNING and one.name.startswith("mlx_roster.")]


def whole(folder: str) -> bool:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {name: FILES[name] for name in WANTED}


def test_a_folder_is_used_as_it_is(cache: Path, tmp_path: Path) -> None:
    folder = hub_cache.put(tmp_path, REPO, FILES)
    located = locate(entry(folder))
    assert located.path == str(folder)
    assert located.estimate >= 500_000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert failure(entry(tmp_path / "secret")) == "model atlas cannot be loaded: its folder does not exist"


def test_a_repo_is_downloaded_once_and_only_what_is_needed_of_it(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    located = locate()
    assert whole(located.path)
    assert hub.downloaded == WANTED
    hub.seen.clear()
    assert locate() == located
    assert hub.seen == []


def test_model_code_is_fetched_only_where_it_may_be_run(hub: FakeHub) -> None:
    assert not (Path(locate().path) / "modeling_atlas.py").exists()
    hub.seen.clear()
    assert (Path(locate(entry(trusted=True)).path) / "modeling_atlas.py").exists()
    assert hub.downloaded == {"modeling_atlas.py"}


def test_a_commit_that_is_cached_needs_no_request(hub: FakeHub) -> None:
    located = locate(entry(revision=commit(REPO)))
    assert Path(located.path).name == commit(REPO)
    hub.seen.clear()
    assert locate(entry(revision=commit(REPO))) == located
    assert hub.seen == []


def test_progress_is_in_bytes_and_only_grows(hub: FakeHub) -> None:
    hub.gates[BIG] = PART
    total = sum(len(FILES[name]) for name in WANTED)

    async def run() -> None:
        locator = Locator(0)
        seen: list[tuple[int, int]] = []
        assert locator.progress() == {}

        def look() -> None:
            seen.extend(locator.progress().values())

        job = asyncio.create_task(locating(locator=locator))
        await held(hub)
        # Of the file at the gate, what went out before; the other is as small as to be here soon.
        await until(lambda: job.done() or seen[-1:] >= [(PART + 200_000, 0)], look)
        hub.open_gate(BIG)
        await until(job.done, look)
        assert {of for _, of in seen} == {total}
        assert seen == sorted(seen)
        assert locator.progress() == {}

    asyncio.run(run())


def test_cancelling_ends_the_download_and_the_next_goes_on_from_there(hub: FakeHub) -> None:
    hub.gates[BIG] = PART

    async def run() -> Located:
        locator = Locator(0)
        job = asyncio.create_task(locating(locator=locator))
        await held(hub)
        await until(lambda: sum(done for done, _ in locator.progress().values()) >= PART + 200_000)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert fetchers() == []
        assert locator.progress() == {}
        hub.open_gate(BIG)
        hub.begun.clear()
        return await locating(locator=locator)

    assert whole(asyncio.run(run()).path)
    assert [answer for answer in hub.begun if answer[0].endswith(".safetensors")] == [(BIG, PART)]


def test_a_hub_that_cuts_in_mid_file_is_asked_for_the_rest(hub: FakeHub) -> None:
    hub.stops[BIG] = PART - 1
    assert whole(locate().path)
    assert [begin for name, begin in hub.begun if name == BIG] == [0, PART - 1, 2 * PART - 2, 3 * PART - 3]
    assert hub.bytes_sent(BIG) == len(FILES[BIG])


def test_a_hub_that_breaks_off_for_good_fails_the_load_and_the_next_goes_on(hub: FakeHub) -> None:
    hub.ends[BIG] = PART
    assert failure() == (
        "model atlas cannot be downloaded: org/atlas is not in the local cache, "
        "and the Hub cannot be reached or broke off"
    )
    hub.ends.clear()
    hub.begun.clear()
    assert whole(locate().path)
    assert (BIG, PART) in hub.begun
    assert (BIG, 0) not in hub.begun


@pytest.mark.parametrize("there", [0, PART])
def test_a_file_that_is_shorter_than_it_should_be_is_not_asked_for_without_end(
    there: int, hub: FakeHub, cache: Path
) -> None:
    if there:
        hub.ends[BIG] = there
        failure()
        hub.ends.clear()
        hub.begun.clear()
    hub.shorts[BIG] = PART
    size = len(FILES[BIG])
    assert failure() == f"model atlas cannot be downloaded: the Hub sent {PART} bytes of a file of {size}"
    assert [begin for name, begin in hub.begun if name == BIG] == [there]
    # What was all that there is, is no beginning of more; what was asked for as a rest may be.
    assert len(list(cache.rglob("*.incomplete"))) == (1 if there else 0)
    hub.shorts.clear()
    assert whole(locate().path)


@pytest.mark.parametrize("name", ["atlas", BIG])
def test_a_hub_that_is_asked_too_often_is_left_alone_for_as_long_as_it_says(name: str, hub: FakeHub) -> None:
    hub.refusals[name] = [(429, 1), (408, 0), (503, 0)]
    assert whole(locate().path)
    assert hub.refusals[name] == []
    assert hub.early == []


def test_a_small_file_that_is_refused_is_asked_for_again(hub: FakeHub) -> None:
    # It is the Hub's client that asks, which has its own ideas of when.
    hub.refusals["config.json"] = [(429, 0)] * 2
    assert whole(locate().path)
    assert hub.refusals["config.json"] == []


def test_a_hub_that_keeps_refusing_fails_the_load(hub: FakeHub) -> None:
    hub.refusals["atlas"] = [(429, 0)] * 10
    assert failure() == "model atlas cannot be downloaded: the Hub answered 429 for org/atlas"


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("7", 7),
        ("86400", asking.LONGEST_PAUSE),
        ("Fri, 31 Dec 2999 23:59:59 GMT", asking.LONGEST_PAUSE),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("soon", 2 * asking.PAUSE),
        ("-1", 2 * asking.PAUSE),
    ],
)
def test_a_pause_is_the_hubs_and_bounded(asked: str, pause: float) -> None:
    answer = httpx.Response(429, headers={"Retry-After": asked}, request=httpx.Request("GET", "http://hub.example"))
    assert asking.pause(HfHubHTTPError("too often", response=answer), 2) == pause


def test_what_is_there_of_another_file_is_not_built_upon(hub: FakeHub, cache: Path) -> None:
    blobs = cache / "models--org--atlas" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag(BIG, FILES[BIG])}.incomplete").write_bytes(bytes(1000))
    assert whole(locate().path)
    assert [begin for name, begin in hub.begun if name == BIG] == [1000, 0]


def test_entries_of_one_repo_share_its_download(hub: FakeHub) -> None:
    hub.gates[BIG] = PART

    async def run() -> None:
        locator = Locator(0)
        jobs = [asyncio.create_task(locator.locate(name, entry())) for name in ("a", "b", "c")]
        await held(hub)
        await until(lambda: locator.progress().keys() == {"a", "b", "c"})
        assert len(fetchers()) == 1
        for job in jobs[:2]:
            job.cancel()
            await asyncio.wait([job])
        assert len(fetchers()) == 1
        assert locator.progress().keys() == {"c"}
        hub.open_gate(BIG)
        assert whole((await jobs[2]).path)

    asyncio.run(run())
    assert hub.held == [BIG]
    assert hub.bytes_sent(BIG) == len(FILES[BIG])


def test_who_trusts_the_code_does_not_go_without_it_for_joining_a_download(hub: FakeHub) -> None:
    hub.gates[BIG] = PART

    async def run() -> list[Located]:
        locator = Locator(0)
        jobs = [asyncio.create_task(locator.locate(str(code), entry(trusted=code))) for code in (False, True)]
        await held(hub)
        await until(lambda: locator.progress().keys() == {"False", "True"})
        hub.open_gate(BIG)
        return await asyncio.gather(*jobs)

    _, trusted = asyncio.run(run())
    assert (Path(trusted.path) / "modeling_atlas.py").exists()
    assert hub.bytes_sent(BIG) == len(FILES[BIG])


def test_different_repos_are_downloaded_at_the_same_time(hub: FakeHub) -> None:
    hub.gates[BIG] = PART
    hub.repos["org/other"] = {name: content for name, content in FILES.items() if name != BIG}
    hub.repos["org/other"]["model.safetensors.index.json"] = b'{"weight_map": {"b": "model-2.safetensors"}}'

    async def run() -> None:
        locator = Locator(0)
        job = asyncio.create_task(locator.locate("atlas", entry()))
        await held(hub)
        assert (await locator.locate("other", entry("org/other"))).estimate
        assert not job.done()
        hub.open_gate(BIG)
        await job

    asyncio.run(run())


def test_what_another_process_brings_of_the_same_file_is_progress(hub: FakeHub) -> None:
    hub.gates[BIG] = PART
    total = sum(len(FILES[name]) for name in WANTED)
    there = PART + len(FILES["model-2.safetensors"])

    def done(locator: Locator) -> int:
        return sum(done for done, _ in locator.progress().values())

    async def run() -> None:
        first, second, third = Locator(0), Locator(0), Locator(0)
        jobs = [asyncio.create_task(locating(locator=first))]
        await held(hub)
        jobs += [asyncio.create_task(locating(locator=one)) for one in (second, third)]
        await until(lambda: done(second) == done(third) == there)
        assert hub.held == [BIG]
        jobs[0].cancel()
        await asyncio.wait(jobs[:1])
        # One of the two goes on where that was, and nothing is counted twice.
        await held(hub, times=2)
        seen: list[tuple[int, int]] = []
        hub.open_gate(BIG)
        await until(
            lambda: all(job.done() for job in jobs),
            lambda: seen.extend([*second.progress().values(), *third.progress().values()]),
        )
        assert all(there <= done <= of == total for done, of in seen)
        assert all(whole(each.path) for each in await asyncio.gather(*jobs[1:]))

    asyncio.run(run())
    assert [begin for name, begin in hub.begun if name == BIG] == [0, PART]


def test_only_a_few_repos_are_downloaded_at_once_and_the_others_wait_their_turn(hub: FakeHub) -> None:
    hub.gates[BIG] = PART
    names = [f"m{number}" for number in range(AT_ONCE + 2)]
    hub.repos.update({f"org/{name}": dict(FILES) for name in names})

    async def run() -> None:
        locator = Locator(0)
        jobs = []
        for number, name in enumerate(names, start=1):
            jobs.append(asyncio.create_task(locator.locate(name, entry(f"org/{name}"))))
            await held(hub, times=min(number, AT_ONCE))
            await until(lambda: len(locator.waiting()) == max(number - AT_ONCE, 0))  # noqa: B023  awaited at once
        assert len(fetchers()) == AT_ONCE
        assert set(locator.waiting()) == set(names[AT_ONCE:])
        jobs[0].cancel()  # one that goes on: the first in the line takes its place
        await asyncio.wait(jobs[:1])
        await held(hub, times=AT_ONCE + 1)
        assert len(fetchers()) == AT_ONCE
        assert set(locator.waiting()) == {names[-1]}
        jobs[-1].cancel()  # one that has not begun
        await asyncio.wait(jobs[-1:])
        assert not locator.waiting()
        hub.open_gate(BIG)
        assert all(whole(each.path) for each in await asyncio.gather(*jobs[1:-1]))

    asyncio.run(run())


def test_the_last_words_of_a_download_process_are_a_warning(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")  # the Hub's client prints something, and cannot be imported
    assert failure() == "model atlas cannot be downloaded: the process that fetched it ended before its time"
    (said,) = warnings(caplog)
    assert "downloading org/atlas ended with 1: " in said.getMessage()
    assert "Invalid IPv6 URL" in said.getMessage()


def test_what_is_printed_by_others_is_no_answer(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('Hello!'); print('[5]', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert whole(locate().path)
    assert warnings(caplog) == []


def test_what_is_printed_on_import_does_not_go_among_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    command = [sys.executable, "-m", "mlx_roster.loaders.fetching"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert ended.stdout == b""
    assert b"Invalid IPv6 URL" in ended.stderr


def test_a_download_process_that_is_killed_leaves_nothing_that_blocks_the_next(hub: FakeHub) -> None:
    hub.gates[BIG] = PART

    async def run() -> None:
        job = asyncio.create_task(locating())
        await held(hub)
        os.kill(fetchers()[0].pid, signal.SIGKILL)
        with pytest.raises(LoadFailed, match="the process that fetched it ended before its time"):
            await job
        hub.open_gate(BIG)
        assert whole((await locating()).path)

    asyncio.run(run())


def test_a_download_process_ends_with_its_parent(hub: FakeHub) -> None:
    hub.gates[BIG] = PART
    request = json.dumps({"repo": REPO, "revision": None, "files": ["*"]}).encode() + b"\n"
    command = [sys.executable, "-m", "mlx_roster.loaders.fetching", str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as fetcher:
        assert fetcher.stdin is not None
        fetcher.stdin.write(request)
        fetcher.stdin.flush()
        hub.wait_held(BIG)
        if sys.platform == "linux":
            # Nor is it what is kept where memory runs out.
            ours, its = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (os.getpid(), fetcher.pid))
            assert its == min(1000, ours + SACRIFICE)
        # What the death of this process would do.
        fetcher.stdin.close()
        assert fetcher.wait(60) == 1


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "the Hub has no org/atlas, or it is private and HF_TOKEN does not open it"),
        (401, "RepoNotFound", "the Hub has no org/atlas, or it is private and HF_TOKEN does not open it"),
        (403, "GatedRepo", "org/atlas is gated; accept its terms on the Hub and set HF_TOKEN"),
        (500, "", "the Hub answered 500 for org/atlas"),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, reason: str, hub: FakeHub) -> None:
    hub.failures[REPO] = status, code
    assert failure() == f"model atlas cannot be downloaded: {reason}"


def test_a_revision_that_is_not_there(hub: FakeHub) -> None:
    assert failure(entry(revision="v9")) == "model atlas cannot be downloaded: org/atlas has no revision v9"


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert failure() == (
            "model atlas cannot be downloaded: org/atlas is not in the local cache, "
            "and the Hub cannot be reached or broke off"
        )


def test_offline_uses_the_cache_and_never_the_network(hub: FakeHub, cache: Path) -> None:
    words = "is not in the local cache, and the roster says offline"
    assert failure(offline=True) == f"model atlas cannot be loaded: org/atlas {words}"
    assert failure(entry(revision="v2"), offline=True).endswith(f"revision v2 of org/atlas {words}")
    folder = hub_cache.put(cache, REPO, FILES)
    assert locate(offline=True).path == str(folder)
    assert hub.seen == []


def test_offline_by_environment(hub: FakeHub) -> None:
    asks = "from tests.loaders.test_locate import failure; print(failure())"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.check_output([sys.executable, "-c", asks], text=True, env=environment, timeout=PATIENCE)
    assert said.endswith("org/atlas is not in the local cache, and HF_HUB_OFFLINE is set\n")
    assert hub.seen == []


def test_a_repo_without_weights(hub: FakeHub) -> None:
    del hub.repos[REPO]["model-2.safetensors"]
    assert failure() == (
        "model atlas cannot be loaded: 1 of 2 weight files are missing, model-2.safetensors among them"
    )


def test_a_cache_that_cannot_be_written(hub: FakeHub, cache: Path) -> None:
    cache.touch()
    reason = failure()
    assert reason.startswith("model atlas cannot be downloaded: ")
    assert str(cache) not in reason


def test_the_rest_of_a_snapshot_is_taken_up_again(hub: FakeHub) -> None:
    folder = Path(locate().path)
    (folder / "model-2.safetensors").unlink()
    assert cached(REPO, None) is None
    hub.seen.clear()
    assert whole(locate().path)
    assert hub.downloaded <= {"model-2.safetensors"}
