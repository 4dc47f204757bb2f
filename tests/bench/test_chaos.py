"""Five minutes of chaos, in ten seconds: the same code, the same claims."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from bench.chaos.ledger import DOCUMENT, Ledger, documented
from bench.chaos.requests import Outcome, Request, ask
from bench.chaos.rosters import Rosters
from bench.chaos.run import Plan, run


def test_no_request_is_lost_and_nothing_is_left(tmp_path: Path) -> None:
    report = run(Plan(seconds=8, seed=5, clients=8, pace=(0.2, 0.7)), tmp_path)
    assert report.lost == []
    assert report.wrong == []
    # It was no idle time.
    figures = report.figures
    assert figures["outcomes"]["whole"] > 30
    assert {"stop", "rewrite", "spoil", "SIGHUP", "load", "unload", "pin", "burst"} <= figures["deeds"].keys()
    assert {"kill", "kill the spare"} & figures["deeds"].keys()
    assert figures["config_reloads"]["ok"] > 0


def test_the_table_of_errors_is_read() -> None:
    found = documented(DOCUMENT.read_text())
    assert {(503, "draining"), (502, "worker_crashed"), (507, "model_too_large"), (405, "method_not_allowed")} <= found
    assert documented("| 404, 405 | `a`, `b`; `c` |\n| `x` | no status |") == {
        (status, code) for status in (404, 405) for code in "abc"
    }


def chunk(text: str = "", finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'model': 'lark', 'choices': [choice]})}\n\n"


CUT = 'data: {"error": {"code": "draining"}}\n\n'
DONE = "data: [DONE]\n\n"
WHOLE = {
    "model": "lark",
    "choices": [{"message": {"content": "a"}, "finish_reason": "length"}],
    "usage": {"completion_tokens": 1},
}


def answered(body: str, *, status: str = "200 OK", length: int | None = None, stream: bool = True) -> Outcome:
    """What is made of a response. `length`: what its head says of it; otherwise it ends with the connection."""

    async def main() -> Outcome:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            (name,) = (line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"x-request-id"))
            size = "" if length is None else f"content-length: {length}\r\n"
            writer.write(
                f"HTTP/1.1 {status}\r\nx-request-id: {name.decode()}\r\n{size}connection: close\r\n\r\n{body}".encode()
            )
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
                return await ask(http, Request("lark", "?", 3, stream=stream))

    return asyncio.run(main())


def test_what_is_whole_or_says_why_it_is_not_is_no_loss() -> None:
    assert answered(chunk("a") + ": still here\n\n" + chunk("b", "length") + DONE).text == "ab"
    assert answered(json.dumps(WHOLE), stream=False).kind == "whole"
    cut = answered(chunk("a") + CUT + DONE)
    assert (cut.kind, cut.code, cut.text) == ("error", "draining", "a")
    refused = answered('{"error": {"code": "model_too_large"}}', status="507 No")
    assert (refused.kind, refused.status, refused.code) == ("error", 507, "model_too_large")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (chunk("a"), "without \\[DONE\\]"),
        (chunk("a") + DONE, "ended with None"),
        (chunk("a", "stop") + DONE, "ended with 'stop'"),  # a model that never does
        (chunk("a", "length"), "without \\[DONE\\]"),
        (CUT, "without \\[DONE\\]"),
        (CUT + chunk("a") + DONE, "after an error"),
        (chunk("a", "length") + DONE + chunk("b"), "done"),
        ("data: {", "JSONDecodeError"),
        ("hello", "running"),
    ],
)
def test_half_a_stream_is_a_loss(body: str, why: str) -> None:
    outcome = answered(body)
    assert outcome.kind == "lost"
    assert re.search(why, outcome.why)


def test_half_an_answer_is_a_loss() -> None:
    assert answered(json.dumps(WHOLE)[:-1], length=1000, stream=False).kind == "lost"
    assert answered(json.dumps(WHOLE)[:-1], stream=False).kind == "lost"
    assert answered(json.dumps(WHOLE | {"usage": {"completion_tokens": 9}}), stream=False).kind == "lost"
    assert answered('{"error": {"code": "draining"}}', status="503 No").why == "Lost: 503 without a Retry-After"
    assert answered("{}", status="500 No").kind == "lost"


class NoLog:
    def story(self, request: str, model: str) -> list[str]:
        return []


def test_an_error_needs_a_cause_and_a_text_is_always_the_same(tmp_path: Path) -> None:
    rosters = Rosters(tmp_path)
    ledger = Ledger(NoLog(), rosters, lambda _: None)

    def entered(**outcome: Any) -> str:
        found = Outcome(**outcome, ended=time.monotonic())
        ledger.enter(Request("lark", "?", 3), found)
        return found.kind

    def refused(status: int, code: str) -> str:
        return entered(kind="error", status=status, code=code)

    assert refused(502, "worker_crashed") == "lost"
    ledger.did("kill", "lark")
    assert refused(502, "worker_crashed") == "error"
    assert refused(200, "worker_crashed") == "error"  # within a stream
    assert refused(500, "worker_crashed") == "lost"  # the table has another status
    assert refused(500, "internal_error") == "lost"
    assert refused(503, "queue_timeout") == "lost"  # it has not waited
    assert refused(503, "draining") == "lost"
    ledger.did("unload", "lark")
    assert refused(503, "draining") == "error"
    assert refused(404, "model_not_found") == "lost"

    assert entered(kind="whole", status=200, model="lark", text="abc") == "whole"
    assert entered(kind="whole", status=200, model="lark", text="ab\ufffd") == "whole"  # shorter, half a character
    assert entered(kind="left", status=200, model="lark", text="abd") == "lost"
    assert entered(kind="whole", status=200, model="wren", text="abc") == "lost"
    assert len(ledger.losses) == ledger.outcomes["lost"] == 8
