"""What a worker says of itself while it works: else it would be taken for one that hangs, after a while."""

from __future__ import annotations

import time

import pytest

from mlx_roster.core import ModelSource
from tests.looking import until
from tests.toys import babbler
from tests.workers.test_process import loaded, run, say


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = babbler(tmp_path_factory.mktemp("pulse") / "babbler")
    return ModelSource(name="babbler", path=str(folder), memory=2**30)


def test_one_that_works_on_is_at_something_new_and_in_the_end_at_nothing(model: ModelSource) -> None:
    async def test() -> None:
        async with loaded(model) as worker:
            assert worker.awaited is None
            stream = worker.submit(say("Tell me", 30_000))[0]
            assert worker.awaited is not None
            await anext(stream)
            come_so_far = time.monotonic()
            # There are more tokens than it takes until it says so.
            while worker.awaited is None or worker.awaited < come_so_far:
                await anext(stream)
            stream.cancel()
            await until(lambda: worker.awaited is None)

    run(test())
