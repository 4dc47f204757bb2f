from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config.source import RosterSource
from mlx_roster.errors import ConfigError
from tests.config.rosters import MINIMAL


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.delenv("PORT", raising=False)


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "roster.yaml"
    source = RosterSource(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        source.read()
    for name in ("atlas", "scribe"):
        file.write_text(f"models: {{{name}: {{source: ./a}}}}")
        assert list(source.read().models) == [name]
    file.write_text("models: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        source.read()


def test_overrides_win_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "roster.yaml"
    source = RosterSource(file, port=9000)
    monkeypatch.setenv("HOST", "127.0.0.2")
    for port in (1000, 2000):
        file.write_text(f"server: {{port: {port}, host: localhost, strict_fields: true}}\n{MINIMAL}")
        server = source.read().server
        assert (server.host, server.port, server.strict_fields) == ("127.0.0.2", 9000, True)


def test_a_single_model_has_no_file(tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "pirate").mkdir()
    source = RosterSource(model=str(tmp_path / "atlas"), adapter_path=str(tmp_path / "pirate"), host="::1")
    assert source.path is None
    roster = source.read()
    assert roster.server.host == "::1"
    assert list(roster.models["atlas"].adapters) == ["pirate"]
