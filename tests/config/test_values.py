"""What single values may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config import MemorySettings, Share
from tests.config.rosters import BASE, MINIMAL, problems, read, with_model


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1", "0:0:0:0:0:0:0:1", "localhost", "LocalHost"])
def test_loopback_hosts(host: str) -> None:
    assert read(f'server: {{host: "{host}"}}\n{MINIMAL}').server.host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "example.com", "", "127.1", "::ffff:127.0.0.1", "[::1]"]
)
def test_other_hosts_need_keys(host: str) -> None:
    (problem,) = problems(f'server: {{host: "{host}"}}\n{MINIMAL}')
    assert problem.startswith(f'roster.yaml:1: server.host: "{host}" is not a loopback address')
    assert "needs API keys" in problem


class TestSources:
    @pytest.mark.parametrize(
        ("source", "folder"),
        [
            ("./models/a", BASE / "models/a"),
            ("../a", BASE.parent / "a"),
            ("..", BASE.parent),
            (".", BASE),
            ("/models/a", Path("/models/a")),
            ("~/models", Path("/home/someone/models")),
        ],
    )
    def test_folders(self, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        assert read(f"models: {{a: {{source: {source}}}}}").models["a"].source == folder

    def test_a_folder_that_is_there_needs_no_dot(self, tmp_path: Path) -> None:
        text = "models: {a: {source: models/a}, b: {source: atlas}}"
        (tmp_path / "models/a").mkdir(parents=True)
        (tmp_path / "atlas").mkdir()
        models = read(text, tmp_path).models
        assert (models["a"].source, models["b"].source) == (tmp_path / "models/a", tmp_path / "atlas")

    @pytest.mark.parametrize("repo", ["mlx-community/Qwen3-4B-4bit", "models/a", "a/b.c_d"])
    def test_repos(self, repo: str) -> None:
        assert read(f"models: {{a: {{source: {repo}}}}}").models["a"].source == repo

    @pytest.mark.parametrize("source", ["atlas", "a/b/c", "a//b", "a/b--c", "a/..b", "-a/b", "a/b.git", "a/b c", "é/b"])
    def test_neither(self, source: str) -> None:
        assert problems(f"models: {{a: {{source: {source}}}}}") == [
            f'roster.yaml:1: models.a.source: "{source}" is neither a folder here (write ./{source} for one that will '
            "be) nor a Hub repo id such as mlx-community/Qwen3-4B-4bit"
        ]

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ('""', "should not be empty"),
            ('" "', "should not be empty"),
            ('"./a\\0b"', "should be a path without control characters"),
            ("[]", "should be a string"),
            ("1", "should be a string; put it in quotes"),
        ],
    )
    def test_no_source_at_all(self, source: str, problem: str) -> None:
        text = f"models: {{a: {{source: {source}, adapters: {{b: {{source: {source}}}}}}}}}"
        assert problems(text) == [
            f"roster.yaml:1: models.a.source: {problem}",
            f"roster.yaml:1: models.a.adapters.b.source: {problem}",
        ]

    def test_a_very_long_source_is_no_folder(self) -> None:
        (problem,) = problems(f"models: {{a: {{source: {'a' * 5000}}}}}")
        assert "is neither a folder here" in problem

    def test_pins_leave_a_place_for_the_others(self) -> None:
        adapters = "adapters: {b: {source: ./b, pin: true}, c: {source: ./c, pin: true}"
        assert problems(f"models: {{a: {{source: ./a, max_adapters: 2, {adapters}, d: ./d}}}}}}") == [
            "roster.yaml:1: models.a.adapters: adapters with pin: 2, max_adapters: 2; "
            "that leaves no place for the others"
        ]
        assert problems(f"models: {{a: {{source: ./a, max_adapters: 1, {adapters}}}}}}}") != []
        assert read(f"models: {{a: {{source: ./a, max_adapters: 2, {adapters}}}}}}}").models["a"].adapters["c"].pin
        assert read(f"models: {{a: {{source: ./a, max_adapters: 3, {adapters}, d: ./d}}}}}}").models["a"].max_adapters

    def test_a_folder_has_no_revision(self) -> None:
        assert problems(with_model("revision: v1")) == [
            "roster.yaml:4: models.atlas.revision: only a model from the Hub has revisions, "
            "and this one's source is a folder"
        ]


class TestMemory:
    @pytest.mark.parametrize(
        ("budget", "meant"), [("75%", Share(0.75)), ("100 %", Share(1.0)), ("1.5GB", 1_500_000_000), ("4096", 4096)]
    )
    def test_budget(self, budget: str, meant: Share | int) -> None:
        assert read(f"memory: {{budget: {budget}}}\n{MINIMAL}").memory.budget == meant

    @pytest.mark.parametrize(
        ("budget", "problem"),
        [
            ("0%", "should be more than 0%"),
            ("120%", "should be 100% at most"),
            ("x%", "should be a percentage such as 10%"),
            ("48G", "should be a size such as 512MiB, 48GiB or 1.5GB, or a whole number of bytes"),
            ("0", "should be at least 1 byte"),
            ("-5", "should be at least 1 byte"),
            ("0.75", "should be a size such as 512MiB, 48GiB or 1.5GB, or a whole number of bytes"),
        ],
    )
    def test_what_is_no_budget(self, budget: str, problem: str) -> None:
        assert problems(f"memory: {{budget: {budget}}}\n{MINIMAL}") == [f"roster.yaml:1: memory.budget: {problem}"]

    @pytest.mark.parametrize("headroom", ["0.1", "10", "1GiB", "101%"])
    def test_what_is_no_headroom(self, headroom: str) -> None:
        (problem,) = problems(f"memory: {{headroom: {headroom}}}\n{MINIMAL}")
        assert problem.startswith("roster.yaml:1: memory.headroom: should be ")

    def test_a_dump_says_what_was_written(self) -> None:
        assert MemorySettings().model_dump()["budget"] == "75%"
        assert MemorySettings.model_validate({"budget": "1GiB"}).model_dump()["budget"] == 2**30
