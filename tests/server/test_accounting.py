"""Every request is accounted for once, as what it was served, however it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Scope

from mlx_roster.config import Roster
from mlx_roster.core import Aside, Delta, Generation, Scored, Usage
from mlx_roster.errors import InternalError, InvalidRequest
from mlx_roster.metrics import Account
from mlx_roster.registry import Registry
from mlx_roster.server.boundary import Boundary
from mlx_roster.server.openai.chat import chat_completions
from mlx_roster.server.openai.completions import text_completions
from mlx_roster.server.openai.desk import Desk
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.server.harness import ROSTER, Breaks

ATLAS: dict[str, Any] = {"model": "atlas", "prompt": "hi"}


class Rig:
    """One registry over fake workers, and what is told of the requests made to it."""

    def __init__(self, registry: Registry, workers: FakeWorkers) -> None:
        self.registry, self.workers = registry, workers
        self.accounts: list[Account] = []
        #: By the names of model and adapter.
        self.gaps: dict[tuple[str, str | None], list[float]] = {}
        self.sent: list[Message] = []
        self.incoming = asyncio.Queue[Message]()

    def _gaps(self, model: str, adapter: str | None) -> Callable[[float], None]:
        return self.gaps.setdefault((model, adapter), []).append

    async def ask(self, body: Any, *, chat: bool = False) -> Account:
        """One request to its end."""
        make: Callable[..., ASGIApp] = chat_completions if chat else text_completions
        self.incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})

        async def send(message: Message) -> None:
            self.sent.append(message)
            await asyncio.sleep(0)

        await Boundary(make(self.registry, self._gaps, Desk()), self.accounts.append)(scope(), self.incoming.get, send)
        return self.accounts[-1]

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})


def scope() -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }


def with_rig(
    body: Callable[[Rig], Coroutine[Any, Any, None]],
    script: Callable[[Generation], Sequence[str | Delta]] = lambda _: ["a", "b", "c"],
) -> None:
    async def main() -> None:
        workers = FakeWorkers(script)
        async with Registry(Roster.model_validate(ROSTER), workers, FakeSources(), 10) as registry:
            await body(Rig(registry, workers))

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_what_was_served(stream: bool, chat: bool) -> None:
    usage = Usage(prompt=11, completion=3, cached=5, reasoning=1, accepted=2, rejected=4)

    async def body(rig: Rig) -> None:
        said = {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi"}
        account = await rig.ask({"model": "captain", "stream": stream, **said}, chat=chat)
        assert rig.accounts == [account]
        assert account.operation == ("chat" if chat else "text_completion"), rig.sent
        assert (account.model, account.adapter) == ("atlas", "pirate"), rig.sent
        assert (account.status, account.code, account.stream) == (200, None, stream)
        assert (account.prompt_tokens, account.completion_tokens, account.cached_tokens) == (11, 3, 5)
        assert (account.reasoning_tokens, account.accepted_tokens, account.rejected_tokens) == (1, 2, 4)
        assert account.finishes == ["length"]
        assert account.waited is not None
        assert account.loaded is not None
        assert account.first is not None
        assert account.ended is not None
        assert account.started <= account.first <= account.first + account.generating <= account.ended
        assert account.further_tokens == len(rig.gaps["atlas", "pirate"]) == 2

    with_rig(body, lambda _: ["a", "b", Delta(0, "c", "length", usage)])


def test_a_prompt_of_several_choices_counts_once_as_in_the_usage() -> None:
    usages = iter([Usage(3, 1, 2), Usage(3, 1), Usage(5, 1, 1), Usage(5, 1)])

    async def body(rig: Rig) -> None:
        account = await rig.ask({"model": "atlas", "prompt": ["one", "another"], "n": 2})
        told = json.loads(rig.sent[-1]["body"])["usage"]
        assert (account.prompt_tokens, account.completion_tokens) == (8, 4)
        assert (told["prompt_tokens"], told["completion_tokens"]) == (8, 4)
        assert account.cached_tokens == told["prompt_tokens_details"]["cached_tokens"] == 3
        assert account.finishes == ["stop"] * 4

    with_rig(body, lambda _: [Delta(0, "a", "stop", next(usages))])


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_from_token_to_token_is_each_choices_own(stream: bool) -> None:
    """However unlike they are: what one of them waits for while another goes on is no time between tokens."""
    said = iter([["a"], ["a", "b", "c", "d", "e"], ["a", "b"]])

    async def body(rig: Rig) -> None:
        account = await rig.ask({**ATLAS, "n": 3, "stream": stream})
        gaps = rig.gaps["atlas", None]
        assert account.further_tokens == len(gaps) == 0 + 4 + 1
        assert account.generating == pytest.approx(sum(gaps))

    with_rig(body, lambda _: next(said))


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_generated_before_a_client_left_counts(stream: bool) -> None:
    async def body(rig: Rig) -> None:
        said = 0

        def script(_: Generation) -> Sequence[str]:
            return Counted()

        class Counted(Sequence[str]):
            def __len__(self) -> int:
                return 100

            def __getitem__(self, index: Any) -> Any:
                nonlocal said
                if index == 20:
                    rig.leave()
                said = index
                return "x"

        rig.workers.script = script
        account = await rig.ask({**ATLAS, "stream": stream})
        assert account.status == 499
        assert 20 <= account.completion_tokens <= said
        assert (account.prompt_tokens, account.finishes) == (0, [])
        assert account.first is not None
        assert rig.accounts == [account]

    with_rig(body)


def test_what_was_generated_and_never_sent_counts_too() -> None:
    async def body(rig: Rig) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                # A client that does not read, and goes.
                await rig.workers.seen("done")
                rig.leave()
                await asyncio.Event().wait()

        def script(_: Generation) -> Sequence[str]:
            asyncio.get_running_loop().call_later(0, noted)
            return ["a", "b", "c"]

        def noted() -> None:
            if rig.workers.workers["atlas"].running:
                asyncio.get_running_loop().call_soon(noted)
            else:
                rig.workers.note("done")

        rig.workers.script = script
        rig.incoming.put_nowait(
            {"type": "http.request", "body": json.dumps({**ATLAS, "stream": True}).encode(), "more_body": False}
        )
        app = Boundary(text_completions(rig.registry, rig._gaps, Desk()), rig.accounts.append)
        await app(scope(), rig.incoming.get, send)
        (account,) = rig.accounts
        assert (account.status, account.completion_tokens, account.finishes) == (499, 3, ["stop"])

    with_rig(body)


@pytest.mark.parametrize(("stream", "status"), [(False, 500), (True, 200)])
def test_an_error_after_tokens_keeps_them(stream: bool, status: int) -> None:
    async def body(rig: Rig) -> None:
        account = await rig.ask({**ATLAS, "stream": stream})
        assert (account.status, account.code) == (status, "internal_error")
        assert (account.completion_tokens, account.prompt_tokens, account.finishes) == (2, 0, [])
        assert rig.accounts == [account]

    with_rig(body, lambda _: Breaks(["a", "b"], InternalError("no")))


def test_one_choice_that_is_through_counts_whole_when_another_fails() -> None:
    scripts = iter([["a", "b", Delta(0, "c", "stop", Usage(7, 3))], Breaks(["a"], InternalError("no"))])

    async def body(rig: Rig) -> None:
        rig.workers.script = lambda _: next(scripts)
        account = await rig.ask({**ATLAS, "n": 2, "stream": True})
        assert (account.prompt_tokens, account.code) in ((7, "internal_error"), (0, "internal_error"))
        assert 2 <= account.completion_tokens <= 4

    with_rig(body)


@pytest.mark.parametrize(
    ("asked", "status", "code", "model"),
    [
        ({"model": "nope", "prompt": "hi"}, 404, "model_not_found", None),
        ({"model": "atlas"}, 400, "invalid_request", None),
        ([], 400, "invalid_request", None),
    ],
)
def test_what_is_refused_has_an_account_and_names_nothing_that_a_client_made_up(
    asked: Any, status: int, code: str, model: str | None
) -> None:
    async def body(rig: Rig) -> None:
        account = await rig.ask(asked)
        assert (account.operation, account.status, account.code) == ("text_completion", status, code)
        assert (account.model, account.waited, account.first) == (model, None, None)
        assert account.ended is not None
        assert not rig.gaps

    with_rig(body)


def test_a_worker_that_refuses_costs_no_tokens() -> None:
    async def body(rig: Rig) -> None:
        account = await rig.ask(ATLAS)
        assert (account.status, account.code, account.completion_tokens) == (400, "invalid_request", 0)
        assert account.waited is not None
        assert account.first is None

    with_rig(body, lambda _: Breaks([], InvalidRequest("too long")))


def test_scoring_a_prompt_is_no_token() -> None:
    scored = Delta(0, "", aside=Aside(prompt=[Scored(1, b"h", None)]), tokens=0)

    async def body(rig: Rig) -> None:
        account = await rig.ask({**ATLAS, "max_tokens": 0, "echo": True, "logprobs": 0, "stream": True})
        assert account.status == 200, rig.sent
        assert (account.first, account.completion_tokens, account.finishes) == (None, 0, ["length"])
        assert rig.gaps == {("atlas", None): []}

    with_rig(body, lambda _: [scored, Delta(0, "hi", "length", Usage(1, 0), tokens=0)])


def test_cancelled_by_shutdown() -> None:
    async def body(rig: Rig) -> None:
        rig.workers.hold("token atlas")
        task = asyncio.create_task(rig.ask(ATLAS))
        await rig.workers.seen("submit atlas")
        task.cancel()
        account = await task
        assert (account.status, account.code, account.completion_tokens) == (503, "draining", 0)
        assert rig.accounts == [account]

    with_rig(body)
