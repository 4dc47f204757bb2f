from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlx_roster.config import (
    AdapterEntry,
    Defaults,
    KvSettings,
    ModelEntry,
    Multiple,
    PromptCacheSettings,
    Roster,
    SchedulingSettings,
    ServerSettings,
    Share,
    UnlistedSettings,
)
from mlx_roster.config.load import load
from mlx_roster.errors import ConfigError
from tests.config.rosters import BASE, MINIMAL, problems, read, with_model

FULL = """\
server: {host: localhost, port: 0, strict_fields: true, request_limit: 1MiB, n_limit: 2}
memory: {budget: 48GiB, headroom: 5%, spare_worker: false}
scheduling:
  {max_wait: 5s, min_residency: 1m, queue_timeout: 90, max_queued: 3, load_timeout: 1h, drain_timeout: 0, ttl: 1d}
defaults: {max_tokens: 256}
generation_config: true
unlisted: {hub: [mlx-community/*], paths: true}
discover: {hub_cache: true}
offline: true
default_model: gpt-4o
models:
  atlas:
    source: ./models/atlas
    aliases: [gpt-3.5-turbo, gpt-4o]
    pin: true
    preload: true
    ttl: never
    priority: 2
    max_queued: 7
    trust_remote_code: true
    max_concurrency: 4
    max_context: 8192
    prompt_cache: {entries: 5, budget: 2MiB}
    kv: {bits: 4, group_size: 32}
    max_adapters: 2
    chat_template_args: {enable_thinking: false, words: [a, {b: 1.5}], none: }
    defaults: {temperature: 0, top_p: 0.9, top_k: 40, min_p: 0.05}
    generation_config: false
    adapters:
      pirate: ./adapters/pirate
      french: {source: adapters/french, aliases: {atlas-fr: {top_k: 3}}, defaults: {top_k: 2}}
  mlx-community/Qwen3-4B-4bit:
    source: mlx-community/Qwen3-4B-4bit
    revision: v1.2
"""


def test_everything_that_can_be_said() -> None:
    roster = read(FULL)
    assert roster.server == ServerSettings(host="localhost", port=0, strict_fields=True, request_limit=2**20, n_limit=2)
    assert (roster.memory.budget, roster.memory.headroom, roster.memory.spare_worker) == (48 * 2**30, 0.05, False)
    assert roster.scheduling == SchedulingSettings(
        max_wait=5.0,
        min_residency=60.0,
        queue_timeout=90.0,
        max_queued=3,
        load_timeout=3600.0,
        drain_timeout=0.0,
        ttl=86400.0,
    )
    assert roster.unlisted == UnlistedSettings(hub=("mlx-community/*",), paths=True)
    assert (roster.discover.hub_cache, roster.offline) == (True, True)
    assert (roster.defaults, roster.generation_config) == (Defaults(max_tokens=256), True)
    assert roster.default_model == "gpt-4o"
    assert roster.base == BASE
    assert list(roster.models) == ["atlas", "mlx-community/Qwen3-4B-4bit"]
    assert roster.models["atlas"] == ModelEntry(
        source=BASE / "models/atlas",
        aliases=("gpt-3.5-turbo", "gpt-4o"),
        pin=True,
        preload=True,
        ttl=math.inf,
        priority=2,
        max_queued=7,
        trust_remote_code=True,
        max_concurrency=4,
        max_context=8192,
        prompt_cache=PromptCacheSettings(entries=5, budget=2 * 2**20),
        kv=KvSettings(bits=4, group_size=32),
        max_adapters=2,
        chat_template_args={"enable_thinking": False, "words": ["a", {"b": 1.5}], "none": None},
        defaults=Defaults(temperature=0, top_p=0.9, top_k=40, min_p=0.05),
        generation_config=False,
        adapters={
            "pirate": AdapterEntry(source=BASE / "adapters/pirate"),
            "french": AdapterEntry(
                source=BASE / "adapters/french",
                aliases={"atlas-fr": Defaults(top_k=3)},
                defaults=Defaults(top_k=2),
            ),
        },
    )
    hub = roster.models["mlx-community/Qwen3-4B-4bit"]
    assert (hub.source, hub.revision) == ("mlx-community/Qwen3-4B-4bit", "v1.2")


def test_what_is_left_out_has_a_value() -> None:
    roster = read(MINIMAL)
    assert roster.server == ServerSettings(
        host="127.0.0.1", port=8080, strict_fields=False, request_limit=8 * 2**20, n_limit=8
    )
    assert (roster.memory.budget, roster.memory.headroom) == (Share(0.75), 0.1)
    assert roster.memory.spare_worker
    assert roster.scheduling == SchedulingSettings(
        max_wait=30.0,
        min_residency=Multiple(3),
        queue_timeout=120.0,
        max_queued=512,
        load_timeout=300.0,
        drain_timeout=60.0,
        ttl=900.0,
    )
    assert roster.unlisted == UnlistedSettings(hub=(), paths=False)
    assert (roster.discover.hub_cache, roster.offline, roster.generation_config) == (False, False, False)
    assert roster.defaults == Defaults()
    assert roster.default_model is None
    assert roster.models["atlas"].model_dump() == {
        "source": BASE / "atlas",
        "revision": None,
        "aliases": {},
        "pin": False,
        "preload": False,
        "ttl": None,
        "priority": 0,
        "max_queued": None,
        "trust_remote_code": False,
        "max_concurrency": 32,
        "max_context": None,
        "prompt_cache": {"entries": 32, "budget": 512 * 2**20},
        "kv": {"bits": None, "group_size": 64},
        "max_adapters": 8,
        "draft": (),
        "chat_template": None,
        "chat_template_args": {},
        "defaults": dict.fromkeys(Defaults.model_fields),
        "generation_config": None,
        "adapters": {},
    }


@pytest.mark.parametrize("off", ["{entries: 0}", "{budget: 0}", "{budget: 0B}"])
def test_prompt_cache_can_be_turned_off(off: str) -> None:
    settings = read(with_model(f"prompt_cache: {off}")).models["atlas"].prompt_cache
    assert 0 in (settings.entries, settings.budget)


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
        'roster.yaml:18: models.scribe.adapters.aloud.aliases[0]: "loud" is already an alias of "scribe:shout" '
        "(line 15)",
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


@pytest.mark.parametrize(
    "section", ["unlisted: {hub: [other/*, org/*]}", "unlisted: {paths: true}", "discover: {hub_cache: true}"]
)
def test_default_model_may_be_one_that_is_not_listed(section: str) -> None:
    assert read(f"{section}\ndefault_model: org/name\n").default_model == "org/name"
    assert problems(f"{section}\ndefault_model: nam\nmodels: {{name: {{source: ./a}}}}") == [
        'roster.yaml:2: default_model: no model or alias is named "nam", did you mean "name"?'
    ]
    assert problems("unlisted: {hub: [other/*]}\ndefault_model: org/name") != []


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
        "roster.yaml:1: server.port: should be less than or equal to 65535",
        "roster.yaml:1: server.strict_fields: should be true or false",
        'roster.yaml:1: server.host: "0.0.0.0" is not a loopback address (127.0.0.0/8, ::1, localhost): whoever '
        "reaches it could use the server. Any other address needs API keys, in auth.keys; openssl rand -hex 24 makes "
        "one",
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
        "roster.yaml:11: models.atlas.adapters.one: should be its folder, or a mapping with source: and its other keys",
        "roster.yaml:11: models.atlas.adapters.two.source: is required",
        "roster.yaml:11: models.atlas.adapters.two.aliases: should be a list, or a mapping from names to defaults",
        'roster.yaml:12: models.bad:name: should be a name without spaces, ":", "$" or braces',
        "roster.yaml:14: models.scribe.source: the tag !!python/object/apply:os.system is not allowed",
        "roster.yaml:15: models.empty: is empty; give it a value or leave the key out",
    ]


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


def test_what_could_not_be_read_is_not_said_to_be_missing() -> None:
    text = "auth: {keys: [{name: anna, key: '${ROSTER_NOT_SET}'}]}\nmodels: {atlas: {source: ./atlas}}\n"
    (told,) = problems(text)
    assert "auth.keys[0].key: the environment variable ROSTER_NOT_SET is not set" in told
