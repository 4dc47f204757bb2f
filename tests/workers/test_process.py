"""Worker processes for real: started, loaded, asked, cancelled, stopped and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_roster.core import Generation, Limits, Measured, ModelSource, Sampling, Text, Tokens
from mlx_roster.errors import ContextLengthExceeded, InternalError, InvalidRequest, LoadFailed, WorkerCrashed
from mlx_roster.workers.process import ProcessWorker
from mlx_roster.workers.spawner import Spawner
from tests.toys import babbler

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = babbler(tmp_path_factory.mktemp("models") / "babbler")
    return ModelSource(name="babbler", path=str(folder), memory=2**30)


def say(words: str, tokens: int) -> Generation:
    return Generation(Text(words), max_tokens=tokens, sampling=GREEDY)


class Ear:
    """An owner that remembers what it heard."""

    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.begun = asyncio.Event()
        self.died = asyncio.Event()
        self.rested = asyncio.Event()
        self.reports: list[Measured] = []
        self.reported = asyncio.Event()
        self.on_first_byte: Callable[[], None] = lambda: None

    def on_progress(self, done: int, total: int) -> None:
        self.progress.append((done, total))
        if not self.begun.is_set():
            self.begun.set()
            self.on_first_byte()

    def on_report(self, measured: Measured) -> None:
        self.rested.set()
        self.reports.append(measured)
        self.reported.set()

    async def report(self) -> Measured:
        """The next one."""
        self.reported.clear()
        await self.reported.wait()
        return self.reports[-1]

    def on_death(self) -> None:
        self.died.set()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@asynccontextmanager
async def loaded(model: ModelSource, ear: Ear | None = None) -> AsyncIterator[ProcessWorker]:
    async with Spawner(keep_spare=False) as spawner:
        worker = await spawner.load(model, ear or Ear())
        try:
            yield worker
        finally:
            await worker.stop()


def test_a_worker_loads_reports_streams_and_leaves_nothing(model: ModelSource) -> None:
    async def test() -> None:
        ear = Ear()
        async with Spawner() as spawner:
            device = await spawner.device()
            assert device.memory == psutil.virtual_memory().total
            worker = await spawner.load(model, ear)
            assert ear.progress[0][0] == 0
            assert ear.progress[-1][0] == ear.progress[-1][1] > 0
            assert worker.measured.active >= ear.progress[-1][1]
            assert worker.capabilities.context == 32768
            stream = worker.submit(say("What is", 20))[0]
            deltas = [delta async for delta in stream]
            assert [delta.finish for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
            usage = deltas[-1].usage
            assert usage is not None
            assert usage.completion == 20
            await ear.rested.wait()
            await worker.stop()
            assert not psutil.pid_exists(worker.pid)
        assert not psutil.Process().children()

    run(test())


def test_cancel_ends_a_sequence_and_the_others_go_on(model: ModelSource) -> None:
    async def test() -> None:
        async with loaded(model) as worker:
            alone = "".join([delta.text async for delta in worker.submit(say("What is", 300))[0]])
            endless, other = worker.submit(say("Tell me", 30_000))[0], worker.submit(say("What is", 300))[0]
            await anext(aiter(endless))
            endless.cancel()
            endless.cancel()
            assert "".join([delta.text async for delta in other]) == alone
            endless.waiting()
            assert [delta async for delta in endless] == []

    run(test())


def test_a_refused_sequence_raises_the_error_itself(model: ModelSource) -> None:
    async def test() -> None:
        async with loaded(model) as worker:
            stream = worker.submit(Generation(Tokens([999_999]), max_tokens=5))[0]
            with pytest.raises(InvalidRequest) as caught:
                await anext(stream)
            assert caught.value.param == "prompt"

    run(test())


def test_worker_keeps_to_its_share_and_says_so(model: ModelSource) -> None:
    async def test() -> None:
        ear = Ear()
        async with loaded(model, ear) as worker:
            assert [delta async for delta in worker.submit(say("What is", 300))[0]]
            kept = await ear.report()
            assert kept.prompts > 0
            worker.share(kept.active - 1)
            given_up = await ear.report()
            assert given_up == worker.measured
            assert (given_up.active, given_up.prompts) == (kept.active - kept.prompts, 0)
            endless, waiting = worker.submit(say("Tell me", 30_000))[0], worker.submit(say("What is", 3))[0]
            await anext(endless)
            beyond = await ear.report()
            assert beyond.active > given_up.active
            assert beyond.kv > 0
            assert waiting.waiting() == []
            worker.share(2**30)
            assert [delta async for delta in waiting]
            endless.cancel()

    run(test())


def test_worker_follows_its_limits(model: ModelSource) -> None:
    async def test() -> None:
        ear = Ear()
        async with loaded(model, ear) as worker:
            assert [delta async for delta in worker.submit(say("What is", 3))[0]]
            worker.limit(Limits(max_context=2, kv=10**6))
            while (report := await ear.report()).growth < 10**5:
                pass
            assert report.growth <= 10**6
            with pytest.raises(ContextLengthExceeded):
                await anext(worker.submit(say("What is the matter", 3))[0])

    run(test())


def test_cut_ends_every_stream_and_the_worker_can_be_stopped_at_once(model: ModelSource) -> None:
    async def test() -> None:
        async with loaded(model) as worker:
            streams = [worker.submit(say("What is", 30_000))[0] for _ in range(3)]
            for stream in streams:
                await anext(stream)
            for stream in streams:
                stream.waiting()
            worker.cut(InternalError("unloaded"))
            for stream in streams:
                with pytest.raises(InternalError, match="unloaded"):
                    await anext(stream)
            # It goes on, in the same batch; what it says to those is for nobody.
            assert [delta async for delta in worker.submit(say("What is", 20))[0]]
            assert all(stream.waiting() == [] for stream in streams)
            await worker.stop()
            assert not psutil.pid_exists(worker.pid)

    run(test())


def test_progress_is_what_comes_for_a_sequence(model: ModelSource) -> None:
    async def test() -> None:
        begun = time.monotonic()
        async with loaded(model) as worker:
            seen = [begun, worker.progressed]
            stream = worker.submit(say("What is", 3))[0]
            seen += [worker.progressed async for _ in stream]
            refused = worker.submit(Generation(Tokens([999_999]), max_tokens=5))[0]
            with pytest.raises(InvalidRequest):
                await anext(refused)
            seen.append(worker.progressed)
            assert seen == sorted(seen)
            assert len(set(seen)) >= 4

    run(test())


def test_taking_in_a_long_prompt_is_progress(tmp_path: Path) -> None:
    async def test() -> None:
        # Slow enough for its prompts to take several seconds, in many steps without a token.
        large = babbler(tmp_path / "large", hidden=512, layers=4)
        source = ModelSource(name="large", path=str(large), memory=2**33)
        ear = Ear()
        async with Spawner(keep_spare=False) as spawner:
            worker = await spawner.load(source, ear)
            stream = worker.submit(Generation(Tokens([7] * 12_000), max_tokens=1))[0]
            begun = worker.progressed
            reports = 0
            async with asyncio.timeout(60):
                while worker.progressed == begun:
                    await ear.report()
                    reports += 1
            assert reports
            assert not stream.waiting()
            await worker.stop()

    run(test())


def test_death_is_seen_at_once_by_every_stream_and_by_the_owner(model: ModelSource) -> None:
    async def test() -> None:
        ear = Ear()
        async with Spawner(keep_spare=False) as spawner:
            worker = await spawner.load(model, ear)
            streams = [worker.submit(say("What is", 30_000))[0] for _ in range(3)]
            await anext(streams[0])
            os.kill(worker.pid, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(WorkerCrashed):
                    async for _ in stream:
                        pass
            await ear.died.wait()
            with pytest.raises(WorkerCrashed):
                await anext(worker.submit(say("What is", 3))[0])
            await worker.kill()

    run(test())


def test_a_model_that_cannot_be_loaded_says_why_without_a_path(tmp_path: Path) -> None:
    async def test() -> None:
        folder = babbler(tmp_path / "broken")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        async with Spawner() as spawner:
            with pytest.raises(LoadFailed) as caught:
                await spawner.load(ModelSource("broken", str(folder), memory=2**30), Ear())
            assert "broken" in caught.value.message
            assert str(tmp_path) not in caught.value.message

    run(test())


def test_crash_during_load_fails_its_waiters(model: ModelSource) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False) as spawner:
            await spawner.device()
            (spare,) = psutil.Process().children()
            ear = Ear()
            ear.on_first_byte = lambda: os.kill(spare.pid, signal.SIGKILL)
            with pytest.raises(WorkerCrashed):
                await spawner.load(model, ear)

    run(test())


def test_a_cancelled_load_leaves_no_process(model: ModelSource) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False) as spawner:
            await spawner.device()
            ear = Ear()
            load = asyncio.create_task(spawner.load(model, ear))
            await ear.begun.wait()
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            assert not psutil.Process().children()

    run(test())


def test_a_worker_that_is_killed_is_killed_once(caplog: pytest.LogCaptureFixture) -> None:
    """A second signal polls first, and may take the status from asyncio: now and then a warning of an unknown child."""
    listens = (sys.executable, "-S", "-c", "import sys, socket; socket.socket(fileno=int(sys.argv[1])).recv(1)")

    async def one() -> int:
        worker = await ProcessWorker.spawn(os.environ, listens)
        await worker.kill()
        assert worker._process.returncode is not None
        return worker._process.returncode

    async def test() -> None:
        for _ in range(40):
            assert set(await asyncio.gather(*(one() for _ in range(4)))) == {-signal.SIGKILL}

    run(test())
    assert "Unknown child" not in caplog.text


def test_a_spare_that_died_is_replaced(model: ModelSource) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False) as spawner:
            await spawner.device()
            (spare,) = psutil.Process().children()
            spare.kill()
            await asyncio.to_thread(spare.wait)
            worker = await spawner.load(model, Ear())
            assert worker.pid != spare.pid
            await worker.stop()

    run(test())


def test_a_spare_that_dies_while_it_still_imports_mlx_is_replaced(model: ModelSource) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False) as spawner:
            load = asyncio.create_task(spawner.load(model, Ear()))
            while not (children := psutil.Process().children()):  # noqa: ASYNC110  nothing says when
                await asyncio.sleep(0)
            os.kill(children[0].pid, signal.SIGKILL)
            worker = await load
            assert worker.pid != children[0].pid
            await worker.stop()

    run(test())


def test_n_load_unload_cycles_return_to_baseline(model: ModelSource) -> None:
    async def test() -> None:
        me = psutil.Process()
        async with Spawner(keep_spare=False) as spawner:
            await (await spawner.load(model, Ear())).stop()
            files, children = me.num_fds(), len(me.children())
            for _ in range(3):
                worker = await spawner.load(model, Ear())
                await worker.stop()
            assert (me.num_fds(), len(me.children())) == (files, children)

    run(test())
