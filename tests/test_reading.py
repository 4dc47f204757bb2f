"""What is checked of a roster before it is served, or served instead of another."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mlx_roster.config import Roster, format_bytes
from mlx_roster.config.source import RosterSource
from mlx_roster.core import Device
from mlx_roster.demo import directory
from mlx_roster.errors import ConfigError
from mlx_roster.loaders.sizes import estimate
from mlx_roster.reading import Reading
from tests.loaders import hub_cache

MIB = 2**20
DEVICE = Device("Toy", "cpu", memory=64 * MIB, working_set=48 * MIB)


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.delenv("PORT", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "roster.yaml"


def written(file: Path, *, budget: str = "75%", atlas: str = "", scribe: str = "", more: str = "") -> Reading:
    demo = directory() / "models"
    file.write_text(
        f"memory: {{budget: {budget}, headroom: 0%}}\n"
        "models:\n"
        f"  atlas: {{source: {demo}/atlas{atlas}}}\n"
        f"  scribe: {{source: {demo}/scribe{scribe}}}\n"
        f"{more}"
    )
    return Reading(RosterSource(file), DEVICE)


def sizes(roster: Roster) -> dict[str, int]:
    return {name: estimate(Path(entry.source), entry, 0).total for name, entry in roster.models.items()}


def test_a_share_of_what_the_device_recommends(file: Path) -> None:
    roster, budget = written(file, budget="50%").again()
    assert list(roster.models) == ["atlas", "scribe"]
    assert budget == 24 * MIB


def test_each_reading_is_of_the_file_as_it_is_then(file: Path) -> None:
    reading = written(file)
    assert not reading.again()[0].models["atlas"].pin
    written(file, budget="30MiB", atlas=", pin: true")
    roster, budget = reading.again()
    assert roster.models["atlas"].pin
    assert budget == 30 * MIB


def test_a_budget_above_the_machines_memory_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        written(file, budget="65MiB").again()
    assert refused.value.message == (f"{file}: memory.budget: 65 MiB is more than the 64 MiB of memory that there are")


def test_a_budget_above_what_is_recommended_is_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(file, budget="48MiB").again()
        assert not caplog.records
        assert written(file, budget="60MiB").again()[1] == 60 * MIB
    assert "60 MiB is more than the 48 MiB that this machine recommends" in caplog.text


@pytest.mark.parametrize("key", ["pin", "preload"])
def test_pins_and_preloads_over_budget_are_refused_at_start(file: Path, key: str) -> None:
    size = sizes(written(file).again()[0])
    together = size["atlas"] + size["scribe"]
    kept = {"atlas": f", {key}: true", "scribe": ", pin: true, preload: true"}
    # To the byte; and without one of the two there is room again.
    written(file, budget=str(together), **kept).again()
    written(file, budget=str(together - 1), atlas=kept["atlas"]).again()
    with pytest.raises(ConfigError) as refused:
        written(file, budget=str(together - 1), **kept).again()
    assert refused.value.message == (
        f"{file}: the models with pin or preload take {format_bytes(together)} together, more than the budget of "
        f"{format_bytes(together - 1)}: atlas {format_bytes(size['atlas'])}, scribe {format_bytes(size['scribe'])}"
    )


def test_what_is_not_here_cannot_be_counted(file: Path) -> None:
    more = "  gone: {source: ./gone, pin: true}\n  hub: {source: nobody/has-this, preload: true}\n"
    size = sizes(written(file).again()[0])
    roster, _ = written(file, budget=str(size["atlas"]), atlas=", pin: true", more=more).again()
    assert len(roster.models) == 4


def test_models_of_the_hub_cache_are_found_again_each_time(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    hub_cache.use(cache, monkeypatch)
    file.write_text("discover: {hub_cache: true}\ndefault_model: org/atlas\n")
    reading = Reading(RosterSource(file), DEVICE)
    with pytest.raises(ConfigError, match=r"roster\.yaml: default_model: no model 'org/atlas' in the roster"):
        reading.again()
    files = {path.name: path.read_bytes() for path in (directory() / "models/atlas").iterdir()}
    hub_cache.put(cache, "org/atlas", files)
    roster, _ = reading.again()
    assert {name: entry.source for name, entry in roster.models.items()} == {"org/atlas": "org/atlas"}
    assert roster.base == tmp_path


def test_a_single_model_is_not_read_again(tmp_path: Path) -> None:
    source = RosterSource(model=str(directory() / "models/atlas"))
    reading = Reading(source, DEVICE)
    assert reading.completed(source.read())[1] == 36 * MIB
    with pytest.raises(ConfigError, match="started with --model: there is no roster file to read again"):
        reading.again()
