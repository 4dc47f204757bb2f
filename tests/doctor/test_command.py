"""How facts are found out on this machine, and `mlx-roster doctor` in a process of its own."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlx_roster import __version__
from mlx_roster.doctor.hub import cache_facts
from mlx_roster.doctor.listening import address_facts, refused
from tests.serving import PATIENCE, demo_roster, serving


def test_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    assert (cache_facts().exists, cache_facts().writable) == (False, True)
    for name in ("models--org--whole", "models--org--half", "models--org--gone"):
        (hub / name / "blobs").mkdir(parents=True)
        (hub / name / "snapshots" / "abc").mkdir(parents=True)
        (hub / name / "blobs" / "one").write_bytes(b"x" * 10)
        (hub / name / "snapshots" / "abc" / "model.safetensors").symlink_to(hub / name / "blobs" / "one")
    (hub / "models--org--half" / "blobs" / "two.incomplete").write_bytes(b"x" * 5)
    (hub / "models--org--gone" / "blobs" / "one").unlink()
    found = cache_facts()
    assert (found.exists, found.size, found.models) == (True, 25, 3)
    assert (found.unfinished, found.broken) == (("org/half",), ("org/gone",))


def test_who_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert address_facts("127.0.0.1", 0).place == "free"
        taken.listen()
        taken.settimeout(PATIENCE)
        answers = threading.Thread(target=lambda: taken.accept()[0].close())
        answers.start()
        assert address_facts("127.0.0.1", port).place == "taken"
        answers.join()
    assert address_facts("127.0.0.1", port).place == "free"
    assert address_facts("192.0.2.1", 8080).place == "unknown"


def test_a_port_that_is_the_systems() -> None:
    said = refused("127.0.0.1", 80, PermissionError(errno.EACCES, "Permission denied"))
    assert said.startswith("cannot listen on 127.0.0.1:80: Permission denied: ports below 1024 are the system's")
    assert "--port" in said.splitlines()[-1]


class _Other(http.server.BaseHTTPRequestHandler):
    """Something that answers /health, and is not ours."""

    def do_GET(self) -> None:
        body = b'{"status": "ok"}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_with_a_health_route_is_not_taken_for_ours() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert address_facts("127.0.0.1", server.server_port).place == "taken"
        server.shutdown()
        thread.join()


def run(
    *arguments: str, environment: Mapping[str, str | None], limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    merged = {key: value for key, value in (os.environ | dict(environment)).items() if value is not None}
    command = [sys.executable, "-m", "mlx_roster", "doctor", "--no-network", *arguments]
    if limit is not None:
        command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, env=merged, check=False, timeout=PATIENCE)


def test_the_command(tmp_path: Path) -> None:
    environment = {"HOST": None, "PORT": "0", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": "hf_secretsecret"}
    done = run(str(demo_roster(tmp_path)), "--json", environment=environment)
    assert "hf_secret" not in done.stdout + done.stderr
    found = {one["area"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["engine"]["level"] == "ok"
    assert found["roster"]["text"].endswith(" GiB")
    assert "with a token" in found["Hub"]["text"]
    assert done.returncode == 0


def test_the_command_where_workers_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "fake" / "mlx").mkdir(parents=True)
    (tmp_path / "fake" / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object')")
    environment = {"HOST": None, "PORT": "0", "PYTHONPATH": str(tmp_path / "fake")}
    done = run(str(demo_roster(tmp_path)), environment=environment)
    assert done.returncode == 1
    assert "problem engine: no worker can start: mlx is installed without a backend -> pip install" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_who_may_read_the_keys(tmp_path: Path) -> None:
    """A key from the environment, or as its digest, is not in the file."""
    key = "k" * 32
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = demo_roster(tmp_path)
    text = path.read_text()
    path.chmod(0o644)
    environment = {"HOST": None, "PORT": "0", "HF_HUB_CACHE": str(tmp_path / "hub"), "ANNA_KEY": key}
    told = []
    for written in ('key: "${ANNA_KEY}"', f"key_sha256: {digest}", f"key: {key}"):
        path.write_text(f"auth: {{keys: [{{name: anna, {written}}}]}}\n{text}")
        told.append("everybody on this machine may read it" in run(str(path), environment=environment).stdout)
    assert told == [False, False, True]


def test_the_command_beside_a_running_server(tmp_path: Path) -> None:
    path = demo_roster(tmp_path)
    with serving("serve", str(path)) as server:
        port = server.url.removesuffix("/v1").rpartition(":")[2]
        done = run(str(path), environment={"HOST": None, "PORT": port})
    assert done.returncode == 0, done.stdout
    assert f"server: mlx-roster {__version__} runs at http://127.0.0.1:{port}, and is well" in done.stdout


def test_the_command_without_a_roster_that_can_be_read(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.yaml"), environment={"HOST": None, "PORT": None})
    assert done.returncode == 1
    assert "none.yaml: cannot be read: No such file or directory -> mlx-roster init" in done.stdout
