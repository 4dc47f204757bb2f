"""Rosters without a file, and what the environment and flags change of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from mlx_roster.config import AuthSettings, KeyEntry, Roster
from mlx_roster.config.load import single, with_overrides
from mlx_roster.errors import ConfigError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.delenv("PORT", raising=False)


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    (tmp_path / "atlas").mkdir()
    return single("atlas")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "models/atlas").mkdir(parents=True)
    for model in ("models/atlas", "./models/atlas", f"{tmp_path}/models/atlas/", "models/../models/atlas"):
        roster = single(model)
        assert roster.default_model == "atlas"
        assert {name: entry.source for name, entry in roster.models.items()} == {"atlas": tmp_path / "models/atlas"}
        assert roster.base == tmp_path


def test_a_repo_with_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapters/my pirate:v2").mkdir(parents=True)
    roster = single("mlx-community/Qwen3-4B-4bit", "adapters/my pirate:v2")
    entry = roster.models["mlx-community/Qwen3-4B-4bit"]
    assert roster.default_model == entry.source == "mlx-community/Qwen3-4B-4bit"
    assert {name: adapter.source for name, adapter in entry.adapters.items()} == {
        "my-pirate-v2": tmp_path / "adapters/my pirate:v2"
    }


@pytest.mark.parametrize(("folder", "name"), [("a b", "a-b"), ("::", "model"), ("${x}", "x"), (" a", "a")])
def test_names_are_made_legal(folder: str, name: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert single(f"./{folder}").default_model == name


def test_the_root_of_the_disk_has_a_name() -> None:
    assert single("/").default_model == "model"


@pytest.mark.parametrize(
    ("model", "adapter", "problem"),
    [
        ("./missing", None, '--model: there is no folder "./missing"'),
        ("atlas", "missing", '--adapter-path: there is no folder "missing"'),
        ("missing", None, '--model: "missing" is neither a folder here (write ./missing for one that will be) '),
        ("", None, "--model: should not be empty"),
        ("a\nb", None, "--model: should be a path without control characters"),
    ],
)
def test_what_cannot_be_served(model: str, adapter: str | None, problem: str, roster: Roster) -> None:
    with pytest.raises(ConfigError) as refused:
        single(model, adapter)
    assert refused.value.message.startswith(problem)


def test_nothing_overrides_nothing(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_overrides(roster) == roster
    monkeypatch.setenv("HOST", "")
    monkeypatch.setenv("PORT", "")
    assert with_overrides(roster) == roster


def test_the_environment_wins_over_the_file_and_flags_over_both(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", "127.0.0.2")
    monkeypatch.setenv("PORT", "9000")
    changed = with_overrides(roster)
    assert (changed.server.host, changed.server.port) == ("127.0.0.2", 9000)
    assert changed.server.request_limit == roster.server.request_limit
    assert (changed.models, changed.base) == (roster.models, roster.base)
    changed = with_overrides(roster, host="::1", port=0)
    assert (changed.server.host, changed.server.port) == ("::1", 0)


def test_a_flag_stands_in_for_a_bad_variable(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu")
    assert with_overrides(roster, host="localhost").server.host == "localhost"


@pytest.mark.parametrize("port", ["http", "-1", "80 80", "8080.0", "٨٠", "9" * 5000])
def test_a_port_is_a_number(roster: Roster, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", port)
    with pytest.raises(ConfigError, match=r"^PORT: should be a whole number$"):
        with_overrides(roster)


def test_no_override_opens_a_server_without_keys(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = roster.model_copy(update={"auth": AuthSettings(keys=(KeyEntry(name="a", key=SecretStr("x" * 16)),))})
    assert with_overrides(keyed, host="0.0.0.0").server.host == "0.0.0.0"
    with pytest.raises(ConfigError, match=r'^--host: "0\.0\.0\.0" is not a loopback address'):
        with_overrides(roster, host="0.0.0.0")
    monkeypatch.setenv("HOST", "::")
    assert with_overrides(keyed).server.host == "::"
    with pytest.raises(ConfigError, match=r'^HOST: "::" is not a loopback address'):
        with_overrides(roster)
    for each in (roster, keyed):
        with pytest.raises(ConfigError, match=r"^--host: should not be empty"):
            with_overrides(each, host="")


def test_problems_name_where_the_value_is_from(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "70000")
    with pytest.raises(ConfigError) as refused:
        with_overrides(roster, host="0.0.0.0")
    first, second = refused.value.message.splitlines()
    assert first.startswith('--host: "0.0.0.0" is not a loopback address')
    assert second == "PORT: should be less than or equal to 65535"
    with pytest.raises(ConfigError, match=r"^--port: should be greater than or equal to 0$"):
        with_overrides(roster, port=-1)
