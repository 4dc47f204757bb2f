"""Each way in which `mlx-roster serve` can fail to start: what is wrong, what to do next, an exit code."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import PATIENCE, demo_roster, serving

KEYED = "auth: {keys: [{name: me, key: 0123456789abcdef}]}\n"


def start(
    *arguments: str | Path, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("HOST", "PORT")}
    return subprocess.run(
        [sys.executable, "-m", "mlx_roster", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=inherited | environment,
        preexec_fn=before,
        check=False,
        timeout=PATIENCE,
    )


def assert_told(done: subprocess.CompletedProcess[str], code: int, what: str, remedy: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    *before, last = done.stderr.splitlines()
    assert remedy in last
    assert any(what in line for line in before), done.stderr


def roster(folder: Path, more: str = "", **of_demo: str) -> Path:
    path = demo_roster(folder, **of_demo)
    path.write_text(path.read_text() + more)
    return path


def test_no_such_roster(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert_told(start("serve", path), 2, "No such file", f"mlx-roster init {path}")


def test_a_roster_that_is_a_folder(tmp_path: Path) -> None:
    assert_told(start("serve", tmp_path), 2, "directory", f"--model {tmp_path}")


def test_a_roster_with_errors(tmp_path: Path) -> None:
    path = roster(tmp_path, "nonsense: 1\n")
    assert_told(start("serve", path), 2, f"{path}:7: nonsense", f"mlx-roster check {path}")


def test_a_port_that_something_else_has() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken.settimeout(PATIENCE)
        answers = threading.Thread(target=lambda: taken.accept()[0].close())
        answers.start()
        done = start("demo", "--port", str(taken.getsockname()[1]))
        answers.join()
    assert_told(done, 2, "something else listens there", "--port")


def test_keys_of_which_none_is_for_operating_are_warned_of(tmp_path: Path) -> None:
    with serving("serve", str(roster(tmp_path, KEYED))) as server:
        server.logged("WARNING auth.keys: none has the scope admin")


def test_a_port_that_another_mlx_roster_has(tmp_path: Path) -> None:
    with serving("serve", str(roster(tmp_path, KEYED))) as server:
        url = server.url.removesuffix("/v1")
        done = start("demo", PORT=url.rpartition(":")[2])
    assert_told(done, 2, f"another mlx-roster serves there already: mlx-roster ps --url {url}", "--port")


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    done = start("serve", roster(tmp_path, KEYED), "--host", "192.0.2.1", "--port", "0")
    assert_told(done, 2, "no address of this machine", "--host")


def test_a_name_that_is_no_address(tmp_path: Path) -> None:
    done = start("serve", roster(tmp_path, KEYED), "--host", "nowhere.invalid", "--port", "0")
    assert_told(done, 2, "no address of this machine", "--host")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS lets everybody have them")
def test_a_port_of_the_system() -> None:
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if os.geteuid() == 0 or int(limit.read_text()) <= 80:
        pytest.skip("whoever runs the tests may have any port")
    assert_told(start("demo", "--port", "80"), 2, "ports below 1024 are the system's", "--port")


def test_host_in_the_environment() -> None:
    assert_told(start("demo", HOST="x86_64-conda-linux-gnu"), 2, "x86_64-conda-linux-gnu", "unset HOST")


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        ("ImportError('libcuda.so.1: cannot open shared object file')", "no NVIDIA driver", "nvidia-smi"),
        ("ImportError('libmlx.so: cannot open shared object file')", "without a backend", "mlx-roster[cpu]"),
        ("RuntimeError('no idea')", "RuntimeError: no idea", "mlx-roster doctor"),
    ],
)
def test_mlx_that_does_not_run_here(tmp_path: Path, error: str, what: str, remedy: str) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text(f"raise {error}\n")
    done = start("demo", "--port", "0", PYTHONPATH=str(tmp_path))
    assert_told(done, 1, what, remedy)


def test_a_budget_beyond_the_machine(tmp_path: Path) -> None:
    path = roster(tmp_path, budget="900TiB")
    assert_told(start("serve", path, "--port", "0"), 2, "memory.budget: 900 TiB is more", f"mlx-roster check {path}")


def test_preloads_beyond_the_budget(tmp_path: Path) -> None:
    path = roster(tmp_path, budget="1MiB")
    path.write_text(path.read_text().replace("scribe: {", "scribe: {preload: true, "))
    assert_told(start("serve", path, "--port", "0"), 2, "pin or preload take", f"mlx-roster check {path}")


def test_a_single_model_that_is_not_there(tmp_path: Path) -> None:
    done = start("serve", "--model", tmp_path / "none", "--port", "0")
    assert done.returncode == 2
    assert "--model: there is no folder" in done.stderr


def test_models_that_are_not_here_are_named_and_the_others_served(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    more = ["  gone: {source: ./gone}", "  empty: {source: ./empty}", "  far: {source: org/far}", "offline: true"]
    path = demo_roster(tmp_path, models=more)
    with serving("serve", str(path), environment={"HF_HUB_CACHE": str(tmp_path / "hub")}) as server:
        server.logged(rf"gone: its folder {tmp_path}/gone does not exist")
        server.logged(rf"empty: its folder {tmp_path}/empty has no config.json")
        server.logged("far: org/far is not in the Hub cache.*mlx-roster pull org/far")
        assert "gone" in [model.id for model in server.client().models.list()]


def test_too_few_open_files() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))

    assert_told(start("demo", "--port", "0", before=few), 1, "only 30 files", "ulimit -n 8192")


def test_a_flag_that_is_none() -> None:
    done = start("serve", "--prot", "1")
    assert done.returncode == 2
    assert "--port" in done.stderr
