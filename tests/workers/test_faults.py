"""Workers that go wrong, as real processes: what it costs, and that the next load is none the worse for it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mlx_roster.core import Counters, Generation, ModelSource, Text
from mlx_roster.errors import LoadFailed, WorkerCrashed
from mlx_roster.lifeline import SACRIFICE
from mlx_roster.workers.process import ProcessWorker
from mlx_roster.workers.spawner import Spawner
from tests.looking import until
from tests.serving import PATIENCE
from tests.workers import rogue
from tests.workers.test_process import Ear, run

SOURCE = ModelSource(name="atlas", path="/nowhere", memory=2**30)
ASKED = Generation(Text("hi"), max_tokens=3)


Program = Callable[[str], tuple[str, ...]]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The command of a worker that goes wrong in one way, to be run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return lambda how: (sys.executable, rogue.__file__, how)


async def answer(worker: ProcessWorker) -> tuple[str, str]:
    """What a request gets: text, and the error that it ends with."""
    text = []
    try:
        async for delta in worker.submit(ASKED)[0]:
            text.append(delta.text)  # noqa: PERF401 - an error must not lose what came before it
    except WorkerCrashed as error:
        return "".join(text), error.message
    return "".join(text), ""


@pytest.mark.parametrize("how", [*rogue.GARBAGE, "abort", "exit"])
def test_a_worker_that_goes_wrong_ends_and_the_next_one_serves(how: str, program: Program) -> None:
    async def test() -> None:
        ear = Ear()
        async with Spawner(keep_spare=False, program=program(how)) as spawner:
            worker = await spawner.load(SOURCE, ear)
            text, error = await answer(worker)
            assert text in ("so far", "")  # what came in one piece with a length that cannot be is lost with it
            assert error == (
                "the worker of atlas died"
                if how in ("abort", "exit")
                else "the worker of atlas wrote what cannot be understood, and was ended"
            )
            await ear.died.wait()
            await worker.kill()
            assert not psutil.pid_exists(worker.pid)
            again = await spawner.load(SOURCE, Ear())
            assert await answer(again) == ("fine", "")
            await again.stop()
        assert not psutil.Process().children()

    run(test())


def test_one_that_goes_wrong_before_it_has_begun_is_replaced(program: Program) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False, program=program("early")) as spawner:
            worker = await spawner.load(SOURCE, Ear())
            assert await answer(worker) == ("fine", "")
            await worker.stop()

    run(test())


def test_one_that_hangs_up_and_stays_is_ended(program: Program) -> None:
    async def test() -> None:
        ear = Ear()
        async with Spawner(keep_spare=False, program=program("stay")) as spawner:
            worker = await spawner.load(SOURCE, ear)
            assert await answer(worker) == ("so far", "the worker of atlas died")
            await ear.died.wait()
            # Its memory counts as free now: nobody else will end it.
            async with asyncio.timeout(PATIENCE):
                await until(lambda: not psutil.pid_exists(worker.pid))
            await worker.kill()

    run(test())


def test_what_is_counted_never_becomes_less(program: Program) -> None:
    """Two threads of a worker count, and the one that looked first may be the last to say it."""

    async def test() -> None:
        async with Spawner(keep_spare=False, program=program("behind")) as spawner:
            worker = await spawner.load(SOURCE, Ear())
            assert await answer(worker) == ("fine", "")
            assert worker.counters == Counters(steps=5, queried=9, hits=3, kv=20)
            await worker.stop()

    run(test())


@contextmanager
def no_more_files() -> Iterator[None]:
    """As if all descriptors were in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    # The lowest free one is past the limit, whatever else is open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_free_file_descriptor_a_load_fails_and_the_next_one_works(program: Program) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False, program=program("honest")) as spawner:
            await (await spawner.load(SOURCE, Ear())).stop()
            files = psutil.Process().num_fds()
            with no_more_files(), pytest.raises(LoadFailed, match="Too many open files"):
                await spawner.load(SOURCE, Ear())
            assert psutil.Process().num_fds() == files
            worker = await spawner.load(SOURCE, Ear())
            assert await answer(worker) == ("fine", "")
            await worker.stop()

    run(test())


def test_where_no_process_can_be_started_a_load_fails_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False, program=(str(tmp_path / "python"),)) as spawner:
            files = psutil.Process().num_fds()
            with pytest.raises(LoadFailed, match="no worker process could be started: No such file or directory"):
                await spawner.load(SOURCE, Ear())
            assert psutil.Process().num_fds() == files

    run(test())


PARENT = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
command = [sys.executable, "-P", "-m", "mlx_roster.workers.main", str(theirs.fileno()), str(os.getpid())]
worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
print(worker.pid, flush=True)
if sys.argv[1] == "greeted":
    ours.recv(10)
print("now", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process outlives its parent until it goes on")
@pytest.mark.parametrize(("stage", "stopped"), [("begun", False), ("greeted", False), ("greeted", True)])
def test_worker_exits_when_its_parent_is_killed(stage: str, stopped: bool) -> None:
    command = [sys.executable, "-c", PARENT, stage]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "now\n"
        if stopped:
            worker.suspend()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(PATIENCE)
        _, alive = psutil.wait_procs([worker], timeout=PATIENCE)
        assert not alive


def test_a_worker_whose_parent_is_gone_already_does_not_begin() -> None:
    nobody = subprocess.run([sys.executable, "-m", "mlx_roster.workers.main", "0", "1"], timeout=PATIENCE)
    assert nobody.returncode == 1


def oom_score(pid: int) -> int:
    """What the kernel adds to a process's size when one must be killed for memory."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no such choice")
def test_where_memory_runs_out_a_worker_is_killed_before_the_server() -> None:
    async def test() -> None:
        async with Spawner() as spawner:
            await spawner.device()
            (worker,) = psutil.Process().children()
            assert oom_score(worker.pid) == min(1000, oom_score(os.getpid()) + SACRIFICE)

    asyncio.run(test())


def test_spawning_is_not_retried_for_ever() -> None:
    async def test() -> None:
        async with Spawner(keep_spare=False, program=(sys.executable, "-c", "pass")) as spawner:
            with pytest.raises(WorkerCrashed):
                await spawner.load(SOURCE, Ear())
        assert not psutil.Process().children()

    asyncio.run(test())
