from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_roster.config import AdapterEntry, Defaults, MemorySettings, ModelEntry, Roster, ServerSettings, Share
from mlx_roster.config.load import load, parse
from mlx_roster.errors import ConfigError

BASE = Path("/nowhere/rosters")

MINIMAL = "models: {atlas: {source: ./atlas}}\n"

FULL = """\
server: {host: localhost, port: 0, strict_fields: true, request_limit: 1MiB}
memory: {budget: 48GiB, headroom: 5%, spare_worker: false}
defaults: {max_tokens: 256}
default_model: gpt-4o
models:
  atlas:
    source: ./models/atlas
    aliases: [gpt-3.5-turbo, gpt-4o]
    max_concurrency: 4
    max_context: 8192
    max_adapters: 2
    defaults: {temperature: 0, top_p: 0.9, top_k: 40, min_p: 0.05}
    adapters:
      pirate: ./adapters/pirate
      french: {source: adapters/french, aliases: [atlas-fr]}
  mlx-community/Qwen3-4B-4bit:
    source: mlx-community/Qwen3-4B-4bit
    revision: v1.2
"""


def read(text: str, base: Path = BASE) -> Roster:
    return parse(dedent(text), name="roster.yaml", base=base)


def problems(text: str, base: Path = BASE) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read(text, base)
    return refused.value.message.splitlines()


def with_model(lines: str) -> str:
    """A roster whose only model has `lines`, which begin on line 4."""
    return "models:\n  atlas:\n    source: ./atlas\n" + "".join(f"    {line}\n" for line in dedent(lines).splitlines())


def test_everything_that_can_be_said() -> None:
    roster = read(FULL)
    assert roster.server == ServerSettings(host="localhost", port=0, strict_fields=True, request_limit=2**20)
    assert (roster.memory.budget, roster.memory.headroom, roster.memory.spare_worker) == (48 * 2**30, 0.05, False)
    assert roster.defaults == Defaults(max_tokens=256)
    assert roster.default_model == "gpt-4o"
    assert roster.base == BASE
    assert list(roster.models) == ["atlas", "mlx-community/Qwen3-4B-4bit"]
    assert roster.models["atlas"] == ModelEntry(
        source=BASE / "models/atlas",
        aliases=("gpt-3.5-turbo", "gpt-4o"),
        max_concurrency=4,
        max_context=8192,
        max_adapters=2,
        defaults=Defaults(temperature=0, top_p=0.9, top_k=40, min_p=0.05),
        adapters={
            "pirate": AdapterEntry(source=BASE / "adapters/pirate"),
            "french": AdapterEntry(source=BASE / "adapters/french", aliases=("atlas-fr",)),
        },
    )
    hub = roster.models["mlx-community/Qwen3-4B-4bit"]
    assert (hub.source, hub.revision) == ("mlx-community/Qwen3-4B-4bit", "v1.2")


def test_what_is_left_out_has_a_value() -> None:
    roster = read(MINIMAL)
    assert roster.server == ServerSettings(
        host="127.0.0.1", port=8080, strict_fields=False, request_limit=8 * 2**20
    )
    assert (roster.memory.budget, roster.memory.headroom) == (Share(0.75), 0.1)
    assert roster.memory.spare_worker
    assert roster.defaults == Defaults()
    assert roster.default_model is None
    assert roster.models["atlas"].model_dump() == {
        "source": BASE / "atlas",
        "revision": None,
        "aliases": (),
        "max_concurrency": 32,
        "max_context": None,
        "max_adapters": 8,
        "defaults": dict.fromkeys(("max_tokens", "temperature", "top_p", "top_k", "min_p")),
        "adapters": {},
    }


def test_a_roster_is_frozen_and_comparable() -> None:
    roster = read(FULL)
    assert roster == read(FULL)
    assert roster != read(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        roster.server.port = 1  # type: ignore[misc]


def test_unknown_key_is_refused_with_a_suggestion() -> None:
    assert problems(with_model("max_context: 1\nmax_adaptors: 3")) == [
        'roster.yaml:5: models.atlas.max_adaptors: unknown key, did you mean "max_adapters"?'
    ]


def test_suggestions_come_from_where_the_key_stands() -> None:
    # Models and adapters may be named like keys.
    text = """\
        sever: {}
        memory: {bugdet: 75%, xyz: 1}
        models:
          defaults: {source: ./a, Max-Adapters: 1, defaults: {temprature: 1}}
          models: {source: ./b, adapters: {adapters: {sauce: ./c, source: ./c}}}
    """
    assert problems(text) == [
        'roster.yaml:1: sever: unknown key, did you mean "server"?',
        'roster.yaml:2: memory.bugdet: unknown key, did you mean "budget"?',
        "roster.yaml:2: memory.xyz: unknown key",
        'roster.yaml:4: models.defaults.defaults.temprature: unknown key, did you mean "temperature"?',
        'roster.yaml:4: models.defaults.Max-Adapters: unknown key, did you mean "max_adapters"?',
        'roster.yaml:5: models.models.adapters.adapters.sauce: unknown key, did you mean "source"?',
    ]


@pytest.mark.parametrize(
    "line", ["pin: true", "ttl: never", "priority: 0", "kv: {bits: 8}", "draft: {model: b}", "trust_remote_code: true"]
)
def test_keys_of_later_versions_are_refused(line: str) -> None:
    (problem,) = problems(with_model(line))
    assert problem.startswith(f"roster.yaml:4: models.atlas.{line.split(':')[0]}: unknown key")


def test_duplicate_alias_is_refused_with_its_line() -> None:
    text = """\
        models:
          atlas:
            source: ./a
            aliases: [gpt-4, atlas]
            adapters:
              french: {source: ./f, aliases: [scribe]}
          scribe:
            source: ./b
            aliases:
              - gpt-4o
              - gpt-4
            adapters:
              shout:
                source: ./s
                aliases: [gpt-4o, loud]
              aloud:
                source: ./s
                aliases: [loud]
    """
    assert problems(text) == [
        'roster.yaml:4: models.atlas.aliases[1]: "atlas" is already the name of a model (line 2)',
        'roster.yaml:6: models.atlas.adapters.french.aliases[0]: "scribe" is already the name of a model (line 7)',
        'roster.yaml:11: models.scribe.aliases[1]: "gpt-4" is already an alias of "atlas" (line 4)',
        'roster.yaml:15: models.scribe.adapters.shout.aliases[0]: "gpt-4o" is already an alias of "scribe" (line 10)',
        'roster.yaml:18: models.scribe.adapters.aloud.aliases[0]: "loud" is already an alias of "scribe:shout" (line 15)',
    ]


def test_clashes_are_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match='"b" is already the name of a model; no model or alias is named "c"'):
        Roster.model_validate(
            {"default_model": "c", "models": {"a": {"source": "./a", "aliases": ["b"]}, "b": {"source": "./b"}}}
        )


def test_adapters_of_different_models_may_share_a_name() -> None:
    roster = read("models: {a: {source: ./a, adapters: {x: ./x}}, b: {source: ./b, adapters: {x: ./y, a: ./z}}}")
    assert list(roster.models["b"].adapters) == ["x", "a"]


@pytest.mark.parametrize("default", ["atlas", "gpt-4", "atlas-fr"])
def test_default_model_is_a_name_or_an_alias(default: str) -> None:
    adapters = "adapters: {french: {source: ./f, aliases: [atlas-fr]}}"
    text = f"default_model: {default}\nmodels: {{atlas: {{source: ./a, aliases: [gpt-4], {adapters}}}}}"
    assert read(text).default_model == default


def test_default_model_must_exist() -> None:
    assert problems("default_model: atlsa\n" + MINIMAL) == [
        'roster.yaml:1: default_model: no model or alias is named "atlsa", did you mean "atlas"?'
    ]


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROSTER_NOT_SET", raising=False)
    text = """\
        server: {port: 80000, host: 0.0.0.0, strict_fields: yes}
        memory: {headroom: 10, spare_worker: }
        default_model: ${ROSTER_NOT_SET}
        models:
          atlas:
            source: ./a
            source: ./b
            max_context: 0
            aliases: [a b, 3.5, a b]
            defaults: {max_tokens: 1.5, temperature: hot, top_p: 0, min_p: .inf}
            adapters: {one: [], two: {aliases: x}}
          bad:name: {source: ./c}
          scribe:
            source: !!python/object/apply:os.system [false]
          empty:
    """
    assert problems(text) == [
        'roster.yaml:1: server.host: "0.0.0.0" is not a loopback address (127.0.0.0/8, ::1, localhost); '
        "any other needs API keys, which this version does not have yet",
        "roster.yaml:1: server.port: should be less than or equal to 65535",
        "roster.yaml:1: server.strict_fields: should be true or false",
        "roster.yaml:2: memory.headroom: should be a percentage such as 10%",
        "roster.yaml:2: memory.spare_worker: is empty; give it a value or leave the key out",
        "roster.yaml:3: default_model: the environment variable ROSTER_NOT_SET is not set; "
        "${ROSTER_NOT_SET:-default} would give it a default",
        "roster.yaml:7: models.atlas.source: is already given on line 6",
        "roster.yaml:8: models.atlas.max_context: should be greater than or equal to 1",
        'roster.yaml:9: models.atlas.aliases[0]: should be a name without spaces, ":", "$" or braces',
        "roster.yaml:9: models.atlas.aliases[1]: should be a string; put it in quotes",
        'roster.yaml:9: models.atlas.aliases[2]: should be a name without spaces, ":", "$" or braces',
        'roster.yaml:9: models.atlas.aliases[2]: "a b" is already an alias of "atlas" (line 9)',
        "roster.yaml:10: models.atlas.defaults.max_tokens: should be a whole number",
        "roster.yaml:10: models.atlas.defaults.temperature: should be a number",
        "roster.yaml:10: models.atlas.defaults.top_p: should be greater than 0",
        "roster.yaml:10: models.atlas.defaults.min_p: should be a finite number",
        "roster.yaml:11: models.atlas.adapters.one: should be a mapping",
        "roster.yaml:11: models.atlas.adapters.two.source: is required",
        "roster.yaml:11: models.atlas.adapters.two.aliases: should be a list",
        'roster.yaml:12: models.bad:name: should be a name without spaces, ":", "$" or braces',
        "roster.yaml:14: models.scribe.source: the tag !!python/object/apply:os.system is not allowed",
        "roster.yaml:15: models.empty: is empty; give it a value or leave the key out",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "roster.yaml: the file is empty"),
        ("# only a comment\n", "roster.yaml: the file is empty"),
        ("\n- atlas\n", "roster.yaml:2: should be a mapping with the key models"),
        ("atlas", "roster.yaml:1: should be a mapping with the key models"),
        ("null", "roster.yaml:1: should be a mapping with the key models"),
        ("{}", "roster.yaml:1: models: is required"),
        ("models: {}", "roster.yaml:1: models: should not be empty"),
        ("models: [a]", "roster.yaml:1: models: should be a mapping"),
        ("models: {a: ./a}", "roster.yaml:1: models.a: should be a mapping"),
        ("models: {a: {}}", "roster.yaml:1: models.a.source: is required"),
        ("models:\n  a: {source: ./a\n", "roster.yaml:3: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("models:\n\ta: 1\n", "roster.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: b: c", "roster.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "roster.yaml:2: not valid YAML: but found another document"),
        ("a: *b", "roster.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\nb: \x07", "roster.yaml:2: not valid YAML: a control character"),
        ('"\\UFFFFFFFF": 1', "roster.yaml: not valid YAML: it has an escape or a number that is out of range"),
        ("[" * 5000, "roster.yaml: not valid YAML: nested too deeply"),
        ("a: &a [*a]", "roster.yaml:1: a[0]: an alias may not lie within its own anchor"),
        ("&a {<<: *a}", "roster.yaml:1: an alias may not lie within its own anchor"),
        ("{[a]: 1}", "roster.yaml:1: a key should be a string"),
        ("{<<: 1}", "roster.yaml:1: << takes a mapping or a list of mappings"),
        ("!!set {a}", "roster.yaml:1: the tag !!set is not allowed"),
        ("a: !!omap [b: 1]", "roster.yaml:1: a: the tag !!omap is not allowed"),
        ("a: !!binary aGk=", "roster.yaml:1: a: the tag !!binary is not allowed"),
        ("a: !!int x", "roster.yaml:1: a: x is no !!int"),
        ("a: !!bool x", "roster.yaml:1: a: x is no !!bool"),
        ("a: " + "9" * 5000, "roster.yaml:1: a: " + "9" * 40 + " is no !!int"),
    ],
)
def test_what_is_no_roster(text: str, problem: str) -> None:
    assert problems(text)[0] == problem


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1", "0:0:0:0:0:0:0:1", "localhost", "LocalHost"])
def test_loopback_hosts(host: str) -> None:
    assert read(f'server: {{host: "{host}"}}\n{MINIMAL}').server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", "", "127.1", "::ffff:127.0.0.1", "[::1]"])
def test_other_hosts_need_keys(host: str) -> None:
    (problem,) = problems(f'server: {{host: "{host}"}}\n{MINIMAL}')
    assert problem.startswith(f'roster.yaml:1: server.host: "{host}" is not a loopback address')
    assert "needs API keys" in problem


def test_plain_words_are_words_and_keys_are_their_text() -> None:
    text = "models: {on: {source: ./a, aliases: [no, y, 2024-01-01]}, 3.5: {source: ./b}, null: {source: ./c}}"
    roster = read(text)
    assert list(roster.models) == ["on", "3.5", "null"]
    assert roster.models["on"].aliases == ("no", "y", "2024-01-01")


def test_numbers_in_all_their_spellings() -> None:
    roster = read(f"server: {{port: 0x1F90, request_limit: 0o10}}\ndefaults: {{top_k: 007, temperature: 1e-1}}\n{MINIMAL}")
    assert (roster.server.port, roster.server.request_limit) == (8080, 8)
    assert (roster.defaults.top_k, roster.defaults.temperature) == (7, 0.1)


def test_anchors_and_merge_keys() -> None:
    text = """\
        models:
          a: &a
            source: ./a
            max_context: 1
            defaults: &cold {temperature: 0}
          b: &b {<<: *a, max_context: 2, aliases: &names [bee]}
          c: {<<: [*b, *a], source: ./c, aliases: []}
          d: {source: ./d, defaults: *cold}
    """
    models = read(text).models
    assert [entry.max_context for entry in models.values()] == [1, 2, 2, None]
    assert [Path(entry.source).name for entry in models.values()] == ["a", "a", "c", "d"]
    assert {entry.defaults.temperature for entry in models.values()} == {0}


def test_a_problem_in_a_merged_value_has_its_own_line() -> None:
    text = """\
        models:
          a: &a
            source: ./a
            max_context: 0
          b:
            <<: *a
            max_adaptors: 1
    """
    assert problems(text) == [
        "roster.yaml:4: models.a.max_context: should be greater than or equal to 1",
        "roster.yaml:4: models.b.max_context: should be greater than or equal to 1",
        'roster.yaml:7: models.b.max_adaptors: unknown key, did you mean "max_adapters"?',
    ]


def test_aliases_that_would_explode_do_not() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 40))
    assert len(problems(f"l0: &l0 [lol]\n{levels}\n{MINIMAL}")) == 40


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSTER_TEST_PORT", "9000")
    monkeypatch.setenv("ROSTER_TEST_NAME", "atlas")
    monkeypatch.delenv("ROSTER_TEST_NOT_SET", raising=False)
    text = """\
        server: {port: "${ROSTER_TEST_NOT_SET:-8081}"}
        models:
          atlas: {source: "./${ROSTER_TEST_NAME}", aliases: ["${ROSTER_TEST_NAME}-1"]}
    """
    assert problems(text) == ["roster.yaml:1: server.port: should be a whole number"]
    server = "\n          port: ${ROSTER_TEST_PORT}\n          strict_fields: ${ROSTER_TEST_NOT_SET:-true}"
    roster = read(text.replace('{port: "${ROSTER_TEST_NOT_SET:-8081}"}', server))
    assert (roster.server.port, roster.server.strict_fields) == (9000, True)
    assert roster.models["atlas"].source == BASE / "atlas"
    assert roster.models["atlas"].aliases == ("atlas-1",)


def test_a_variable_within_braces_needs_quotes() -> None:
    assert problems("server: {port: ${PORT}}") == [
        "roster.yaml:1: not valid YAML: expected ',' or '}', but got '{'; "
        "within { } or [ ] a variable needs quotes, and a line of its own to be a number"
    ]


def test_variables_are_not_expanded_in_names() -> None:
    (problem,) = problems("models: {'${HOME}': {source: ./a}}")
    assert problem.startswith("roster.yaml:1: models.${HOME}: should be a name")


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


class TestFiles:
    def test_sources_are_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "roster.yaml").write_text(MINIMAL)
        monkeypatch.chdir(tmp_path)
        roster = load(Path("roster.yaml"))
        assert roster.base == tmp_path
        assert roster.models["atlas"].source == tmp_path / "atlas"

    def test_a_byte_order_mark_is_no_matter(self, tmp_path: Path) -> None:
        (tmp_path / "roster.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
        assert list(load(tmp_path / "roster.yaml").models) == ["atlas"]

    def test_problems_begin_with_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "roster.yaml"
        file.write_text("models:\n  a: 1\n")
        with pytest.raises(ConfigError) as refused:
            load(file)
        assert refused.value.message == f"{file}:2: models.a: should be a mapping"

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("missing.yaml", ": cannot be read: No such file or directory"),
            ("folder", ": cannot be read: Is a directory"),
            ("nul\0", ": cannot be read: embedded null byte"),
            ("latin.yaml", ":2: is not UTF-8 text"),
            ("utf16.yaml", ":1: is not UTF-8 text"),
            ("empty.yaml", ": the file is empty"),
        ],
    )
    def test_what_is_no_file(self, tmp_path: Path, name: str, problem: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "latin.yaml").write_bytes("models:\n  café: {}\n".encode("latin-1"))
        (tmp_path / "utf16.yaml").write_text(MINIMAL, encoding="utf-16")
        (tmp_path / "empty.yaml").touch()
        with pytest.raises(ConfigError) as refused:
            load(tmp_path / name)
        assert refused.value.message == f"{os.fspath(tmp_path / name)}{problem}".replace("\0", "\\x00")


def test_no_character_of_a_file_reaches_the_report_raw() -> None:
    text = r'{"a\n\e[31m": 1, "\ud800": 2, "b": "\ud800", models: {a: {source: "b\n"}}}'
    report = "\n".join(problems(text))
    assert r"a\n\x1b[31m: unknown key" in report
    assert r"\ud800: is not valid Unicode text" in report
    assert "b: is not valid Unicode text" in report
    assert report.count("\n") == 3
    assert "\x1b" not in report


_words = st.sampled_from(
    "models source aliases adapters server port memory budget 75% ./a org/b ${HOME} ${NO:-8} $$ << *x &x !!str !!set "
    "~ null 1 -1.5 .nan true [] {} [ ] { } : - , ? | > ' \" # --- ... %YAML \\ \n \n\x20 \n\x20\x20 \t \x00 é".split(" ")
)
_roster_like = st.lists(_words, max_size=25).map(" ".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), _roster_like, _roster_like.map(lambda text: f"models: {{a: {{source: ./a}}}}\n{text}")))
def test_any_text_is_a_roster_or_a_config_error(text: str) -> None:
    try:
        roster = parse(text, name="roster.yaml", base=BASE)
    except ConfigError as error:
        assert all(line.startswith("roster.yaml") for line in error.message.splitlines())
        assert error.message
    else:
        assert roster.models
