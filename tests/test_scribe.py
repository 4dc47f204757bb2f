"""What nobody reads holds nobody up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2

from mlx_roster.scribe import Scribe, ScribedLog
from tests.serving import PATIENCE, demo_roster


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("mlx_roster.x", logging.INFO, __file__, 1, message, args, None)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_in_order_and_as_it_was_when_it_was_said() -> None:
    scribe, kept = Scribe(), Kept()
    log, told = ScribedLog(scribe, kept), [1]
    for number in range(100):
        told[0] = number
        log.handle(record("%s", told))
    assert scribe.close(PATIENCE)
    assert kept.messages == [f"[{number}]" for number in range(100)]


def test_what_there_is_no_room_for_is_counted() -> None:
    scribe, kept, free = Scribe(waiting=2), Kept(), threading.Event()
    log = ScribedLog(scribe, kept)
    scribe.put(free.wait)
    while not scribe.idle:
        pass  # until the thread has it
    for number in range(5):
        log.handle(record("line %d", number))
    free.set()
    while not scribe.idle:
        pass
    log.handle(record("later"))
    assert scribe.close(PATIENCE)
    assert kept.messages == ["line 0", "line 1", "3 lines are missing here: nobody took them", "later"]


def test_what_cannot_be_written_keeps_nothing_else_from_it() -> None:
    def fail() -> None:
        raise OSError

    scribe, kept = Scribe(), Kept()
    log = ScribedLog(scribe, kept)
    scribe.put(fail)
    log.handle(record("%d lines", "three"))
    log.handle(record("the end"))
    assert scribe.close(PATIENCE)
    assert kept.messages == ["%d lines ('three',)", "the end"]


def test_a_record_is_left_as_it_is_for_others() -> None:
    scribe = Scribe()
    said = record("%d lines", 3)
    ScribedLog(scribe, Kept()).handle(said)
    assert (said.msg, said.args) == ("%d lines", (3,))
    assert scribe.close(PATIENCE)


def test_an_end_that_does_not_come_is_not_waited_for() -> None:
    scribe, free = Scribe(waiting=1), threading.Event()
    scribe.put(free.wait)
    assert not scribe.close(0.01)
    free.set()


def test_a_server_whose_log_nobody_reads_goes_on_and_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT")}
    command = [sys.executable, "-m", "mlx_roster", "serve", str(demo_roster(tmp_path)), "--port", "0", "--verbose"]
    with subprocess.Popen([*command, "--log-format", "text"], stderr=writer, env=inherited) as process:
        os.close(writer)
        said = b""
        while b"ready at " not in said or not said.endswith(b"\n"):
            said += os.read(reader, 1)
        url = said.rpartition(b"ready at ")[2].decode().split()[0]
        # Far more than the pipe takes.
        with httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            for _ in range(600):
                assert client.get(f"/models/{'x' * 200}").status_code == 404
            assert client.get("/models").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    os.close(reader)
