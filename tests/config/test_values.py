"""What single values may be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlx_roster.config import MemorySettings, Multiple, Share
from tests.config.rosters import BASE, MINIMAL, problems, read, with_model


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1", "0:0:0:0:0:0:0:1", "localhost", "LocalHost"])
def test_loopback_hosts(host: str) -> None:
    assert read(f'server: {{host: "{host}"}}\n{MINIMAL}').server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", "127.1", "::ffff:127.0.0.1"])
def test_other_hosts_need_keys(host: str) -> None:
    (problem,) = problems(f'server: {{host: "{host}"}}\n{MINIMAL}')
    assert problem.startswith(f'roster.yaml:1: server.host: "{host}" is not a loopback address')
    assert "needs API keys" in problem


@pytest.mark.parametrize("more", ["", "auth: {keys: [{name: a, key: 0123456789abcdef-}]}\n"], ids=["no keys", "keys"])
@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "should not be empty: 127.0.0.1 is this machine for itself, 0.0.0.0 is every address that it has"),
        ("[::1]", "should be without brackets: ::1"),
        ("[::]", "should be without brackets: ::"),
        ("0.0.0.0:8080", "is no address; the port goes into server.port"),
        ("localhost:8080", "is no address; the port goes into server.port"),
        ("::1::2", "is no IPv6 address"),
        ("http://localhost", "should be an address and no URL: 127.0.0.1"),
        ("0.0.0.0 ", "should be without spaces"),
    ],
)
def test_what_is_no_address_is_none_with_keys_either(host: str, said: str, more: str) -> None:
    assert problems(f'server: {{host: "{host}"}}\n{more}{MINIMAL}') == [f"roster.yaml:1: server.host: {said}"]


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://App.example.com:443", "https://app.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443", "http://localhost:443"),
        ("https://app.example.com:8443", "https://app.example.com:8443"),
        ("https://[::1]:443", "https://[::1]"),
        ("https://[::443]", "https://[::443]"),
        ("app://obsidian.md:80", "app://obsidian.md:80"),
    ],
)
def test_an_origin_is_as_browsers_say_it(written: str, origin: str) -> None:
    assert read(f'server: {{cors_origins: ["{written}"]}}\n{MINIMAL}').server.cors_origins == (origin,)


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


DURATION = "should be a duration such as 90s, 15m or 1.5h, or a number of seconds"


class TestScheduling:
    def test_durations_are_seconds(self) -> None:
        lines = "{max_wait: 1m, queue_timeout: 0.5, ttl: never, load_timeout: 10}"
        settings = read(f"scheduling: {lines}\n{MINIMAL}").scheduling
        assert (settings.max_wait, settings.queue_timeout, settings.load_timeout) == (60, 0.5, 10)
        assert settings.ttl == math.inf

    @pytest.mark.parametrize(("written", "meant"), [("1.5x", Multiple(1.5)), ("90s", 90.0), ("0", 0.0)])
    def test_min_residency(self, written: str, meant: Multiple | float) -> None:
        assert read(f"scheduling: {{min_residency: {written}}}\n{MINIMAL}").scheduling.min_residency == meant

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("max_wait: soon", DURATION),
            ("max_wait: never", DURATION),
            ("queue_timeout: .nan", DURATION),
            ("drain_timeout: -1", DURATION),
            ('drain_timeout: "30"', DURATION),
            ("load_timeout: 0", "should be more than 0"),
            ("load_timeout: 0ms", "should be more than 0"),
            ("stall_timeout: 4.9s", "should be 5s or more: in less, a busy machine would be taken for a hang"),
            ("stall_timeout: 0", "should be 5s or more: in less, a busy machine would be taken for a hang"),
            ("stall_timeout: never", DURATION),
            ("min_residency: 3y", f"{DURATION}, or a multiple of the time that loading takes, such as 3x"),
            ("min_residency: hex", "should be a multiple such as 3x"),
            ("ttl: forever", f'{DURATION}, or "never"'),
            ("max_queued: -1", "should be greater than or equal to 0"),
            ("max_wait: ", "is empty; give it a value or leave the key out"),
            ("max_wiat: 1s", 'unknown key, did you mean "max_wait"?'),
        ],
    )
    def test_what_it_may_not_be(self, line: str, problem: str) -> None:
        assert problems(f"scheduling:\n  {line}\n{MINIMAL}") == [
            f"roster.yaml:2: scheduling.{line.split(':')[0]}: {problem}"
        ]

    def test_nobody_may_wait(self) -> None:
        assert read(f"scheduling: {{max_queued: 0, queue_timeout: 0}}\n{MINIMAL}").scheduling.max_queued == 0

    def test_a_model_has_its_own(self) -> None:
        entry = read(with_model("ttl: 90s\npin: true\npreload: true\npriority: -3\nmax_queued: 0")).models["atlas"]
        assert (entry.ttl, entry.pin, entry.preload, entry.priority, entry.max_queued) == (90, True, True, -3, 0)
        assert read(with_model("ttl: never")).models["atlas"].ttl == math.inf

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("ttl: x", f'{DURATION}, or "never"'),
            ("priority: 101", "should be less than or equal to 100"),
            ("priority: high", "should be a whole number"),
            ("max_queued: -1", "should be greater than or equal to 0"),
            ("pin: 1", "should be true or false"),
            ("preload: yes", "should be true or false"),
            ("trust_remote_code: on", "should be true or false"),
            ("kv: 8", "should be a mapping"),
            ("prelaod: true", 'unknown key, did you mean "preload"?'),
        ],
    )
    def test_what_a_model_may_not_have(self, line: str, problem: str) -> None:
        assert problems(with_model(line)) == [f"roster.yaml:4: models.atlas.{line.split(':')[0]}: {problem}"]

    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
    def test_caches_have_so_many_bits(self, bits: int) -> None:
        entry = read(with_model(f"kv: {{bits: {bits}, group_size: 128}}")).models["atlas"]
        assert (entry.kv.bits, entry.kv.group_size) == (bits, 128)

    @pytest.mark.parametrize("bits", ["0", "1", "7", "16", "4.5", '"8"', "true"])
    def test_caches_have_no_other_number(self, bits: str) -> None:
        expected = "roster.yaml:4: models.atlas.kv.bits: should be 2, 3, 4, 5, 6 or 8"
        assert problems(with_model(f"kv: {{bits: {bits}}}")) == [expected]

    @pytest.mark.parametrize("size", ["16", "96"])
    def test_caches_have_no_other_groups(self, size: str) -> None:
        expected = "roster.yaml:4: models.atlas.kv.group_size: should be 32, 64 or 128"
        assert problems(with_model(f"kv: {{group_size: {size}}}")) == [expected]

    def test_a_dump_says_what_was_written(self) -> None:
        roster = read(f"scheduling: {{max_wait: 90, min_residency: 2.5x, ttl: never}}\n{with_model('ttl: 1h')}")
        dumped = roster.model_dump()
        assert (dumped["scheduling"]["max_wait"], dumped["scheduling"]["min_residency"]) == ("90s", "2.5x")
        assert (dumped["scheduling"]["ttl"], dumped["models"]["atlas"]["ttl"]) == ("never", "1h")


class TestUnlisted:
    def test_globs(self) -> None:
        unlisted = read(f"unlisted: {{hub: [mlx-community/*, org/Name-4bit, '*'], paths: true}}\n{MINIMAL}").unlisted
        assert (unlisted.hub, unlisted.paths) == (("mlx-community/*", "org/Name-4bit", "*"), True)

    @pytest.mark.parametrize("glob", ['""', '" "', "mlx-community", '"a b/*"', '"a\\0/*"', '"a/*\\n"', "ä/*"])
    def test_what_is_no_glob(self, glob: str) -> None:
        assert problems(f"unlisted:\n  hub: [ok/*,\n    {glob}]\n{MINIMAL}") == [
            "roster.yaml:3: unlisted.hub[1]: should be a glob of Hub repo ids, which are org/name: "
            "mlx-community/* or, for all of them, *"
        ]

    @pytest.mark.parametrize(
        ("hub", "problem"),
        [("mlx-community/*", ": should be a list"), ("[3]", "[0]: should be a string; put it in quotes")],
    )
    def test_what_is_no_list_of_globs(self, hub: str, problem: str) -> None:
        assert problems(f"unlisted: {{hub: {hub}}}\n{MINIMAL}") == [f"roster.yaml:1: unlisted.hub{problem}"]

    @pytest.mark.parametrize(
        "text", ["unlisted: {paths: true}", "discover: {hub_cache: true}", "unlisted: {hub: ['*']}"]
    )
    def test_no_model_need_be_listed(self, text: str) -> None:
        assert read(text).models == {}
