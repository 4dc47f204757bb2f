"""What `mlx-roster load` shows while it waits."""

from __future__ import annotations

from pathlib import Path

from tests.cli.processes import environment, on_terminal, run
from tests.server.harness import running


def test_a_terminal_sees_how_far_a_load_is(tmp_path: Path) -> None:
    env = environment(tmp_path / "hub")
    with running() as server:
        server.workers.hold("load atlas")
        code, seen = on_terminal(
            *("load", "atlas", "--url", server.url),
            at=tmp_path,
            env=env,
            when="atlas: loading",
            then=lambda: server.open("load atlas"),
        )
    assert code == 0, seen
    assert "atlas: ready, 1 B" in seen


def test_a_pipe_sees_the_end_alone(tmp_path: Path) -> None:
    with running() as server:
        done = run("load", "atlas", "--url", server.url, at=tmp_path, env=environment(tmp_path / "hub"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "atlas: ready, 1 B\n", "")
