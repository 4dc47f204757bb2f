"""Keys on a real server: an address that others reach, the OpenAI client, a reload, the commands, and what is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from tests.serving import PATIENCE, Server, demo_roster, serving

GUEST, OPS, OTHER = "secret-guest-0123456789", "secret-ops-0123456789", "secret-other-0123456789"
GUEST_KEY = '{name: guest, key: "${GUEST_KEY}", models: ["scribe"]}'
OPS_KEY = f"{{name: ops, key: {OPS}, scopes: [infer, admin]}}"
ENVIRONMENT = {"GUEST_KEY": GUEST}


def roster(folder: Path, *keys: str, host: str = "0.0.0.0") -> Path:
    path = demo_roster(folder)
    auth = f"auth: {{keys: [{', '.join(keys)}]}}\n" if keys else ""
    path.write_text(f"server: {{host: {host}}}\n{auth}{path.read_text()}")
    return path


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=here(server), api_key=key, max_retries=0, timeout=PATIENCE)


def here(server: Server) -> str:
    return server.url.replace("0.0.0.0", "127.0.0.1")


def command(*arguments: str, key: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_roster", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MLX_ROSTER_KEY": key, "MLX_ROSTER_URL": url},
        check=False,
        timeout=PATIENCE,
    )


def test_a_server_for_others_is_used_with_keys_and_keeps_them_to_itself(tmp_path: Path) -> None:
    path = roster(tmp_path, GUEST_KEY, OPS_KEY)
    with serving("serve", str(path), environment=ENVIRONMENT) as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server, key)) for key in (GUEST, OPS, OTHER, "no-key")]
        guest, ops, other, nobody = clients
        assert [model.id for model in guest.models.list()] == ["scribe", "scribe:shout"]
        assert guest.completions.create(model="scribe", prompt="hi", max_tokens=2).model == "scribe"
        with pytest.raises(openai.PermissionDeniedError) as refused:
            guest.completions.create(model="gpt-3.5-turbo", prompt="hi")
        assert refused.value.code == "model_not_allowed"
        with pytest.raises(openai.AuthenticationError) as unknown:
            nobody.models.list()
        assert unknown.value.code == "invalid_api_key"
        assert "atlas" not in command("ps", key=OPS, url=here(server)).stdout
        denied = command("ps", key=GUEST, url=here(server))
        assert (denied.returncode, "scope admin" in denied.stderr) == (1, True)

        # A key goes, and one comes.
        path.write_text(path.read_text().replace(GUEST_KEY, f"{{name: other, key: {OTHER}}}"))
        reloaded = command("reload", "--json", key=OPS, url=here(server))
        assert json.loads(reloaded.stdout)["settings"] == ["auth"]
        with pytest.raises(openai.AuthenticationError):
            guest.models.list()
        assert len(list(other.models.list())) == len(list(ops.models.list())) == 5

        # Without keys, or on paper for this machine alone, it would be open to all: neither is taken.
        right = path.read_text()
        for refusals, host in enumerate(("0.0.0.0", "127.0.0.1"), start=1):
            roster(tmp_path, host=host)
            server.process.send_signal(signal.SIGHUP)
            server.logged("the roster was not reloaded", refusals)
            assert httpx.get(f"{here(server)}/models", timeout=PATIENCE).status_code == 401
        path.write_text(right)
        status = httpx.get(
            f"{here(server).removesuffix('/v1')}/admin/status",
            headers={"authorization": f"Bearer {OPS}"},
            timeout=PATIENCE,
        )
        assert not status.json()["reload"]["ok"]
        told = "\n".join([*server.lines, status.text, denied.stderr, reloaded.stdout])
    assert "secret" not in told
    assert "secret" not in "\n".join(server.lines)


@pytest.mark.parametrize("arguments", [[], ["--host", "0.0.0.0"]])
def test_no_server_for_others_starts_without_keys(tmp_path: Path, arguments: list[str]) -> None:
    path = roster(tmp_path, host="127.0.0.1" if arguments else "0.0.0.0")
    started = subprocess.run(
        [sys.executable, "-m", "mlx_roster", "serve", str(path), "--port", "0", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert started.returncode == 2
    assert "needs API keys, in auth.keys" in started.stderr
