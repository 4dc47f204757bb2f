from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlx_roster.config.load import load
from mlx_roster.config.schema import json_schema
from mlx_roster.config.units import DURATION_PATTERN, parse_lifetime

ROOT = Path(__file__).parents[2]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "mlx_roster/demo/roster.yaml"]

validator = jsonschema.Draft202012Validator(json_schema())


def test_the_schema_in_the_repo_is_the_models_own() -> None:
    command = [sys.executable, "-W", "error", "-m", "mlx_roster.config.schema"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    written = (ROOT / "docs/roster.schema.json").read_text()
    assert written == ran.stdout, "python -m mlx_roster.config.schema > docs/roster.schema.json"
    assert json.loads(written) == json_schema()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_key_says_what_it_is_for() -> None:
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        for key, value in model.get("properties", {}).items():
            assert value.get("description"), f"{model['title']}.{key}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_validates(example: Path) -> None:
    validator.validate(yaml.safe_load(example.read_text()))
    load(example)


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"minimal.yaml", "team.yaml", "full.yaml", "roster.yaml"}


@pytest.mark.parametrize(
    "more",
    [
        {"server": {"port": "${PORT:-8080}", "strict_fields": "${STRICT}", "request_limit": "${LIMIT}"}},
        {"memory": {"budget": "48GiB", "headroom": "12.5%"}},
        {"memory": {"budget": 4096}},
        {"memory": {"budget": "${BUDGET}"}},
        {"default_model": "${MODEL}"},
        {"scheduling": {"max_wait": 30, "min_residency": "3x", "queue_timeout": 1.5, "ttl": "never", "max_queued": 0}},
        {"scheduling": {"max_wait": "30s", "min_residency": "1.5h", "load_timeout": 5, "ttl": 0}},
        {"scheduling": {"max_wait": "${WAIT}", "min_residency": "${STAY:-3x}", "ttl": "${TTL}"}},
        {"unlisted": {"hub": ["mlx-community/*", "*", "org/name"], "paths": True}},
        {"discover": {"hub_cache": "${ALL:-false}"}, "offline": True},
        {"models": {"a": {"source": "./a", "pin": True, "preload": True, "ttl": "never", "priority": -100}}},
        {"models": {"a": {"source": "./a", "ttl": "${TTL}", "max_queued": 0, "trust_remote_code": False}}},
        {"models": {"a": {"source": "./a", "prompt_cache": {"entries": 0, "budget": "${BYTES:-1GiB}"}}}},
        {"models": {"a": {"source": "./a", "prompt_cache": {"budget": 0}}}},
        {"models": {"a": {"source": "./a", "aliases": {"b": {"top_k": "${K}"}, "c": None, "d": {}}}}},
        {"models": {"a": {"source": "./a", "adapters": {"x": {"source": "./x", "defaults": {"stop": ["END"]}}}}}},
        {"models": {"a": {"source": "./a", "chat_template": "./a.jinja", "chat_template_args": {"b": [{"c": None}]}}}},
        {"models": {"a": {"source": "./a", "generation_config": "${OWN:-true}"}}, "generation_config": False},
        {"models": {"a": {"source": "./a", "aliases": ["${ALIAS}"], "adapters": {"x": "./x", "y": {"source": "./y"}}}}},
    ],
)
def test_what_the_schema_takes(more: dict[str, Any]) -> None:
    validator.validate({"models": {"a": {"source": "./a"}}, **more})


def test_models_may_come_from_elsewhere() -> None:
    validator.validate({"discover": {"hub_cache": True}})
    validator.validate({"unlisted": {"hub": ["*"]}, "models": {}})
    assert not validator.is_valid({})


@pytest.mark.parametrize(
    "more",
    [
        {"sever": {}},
        {"server": {"port": 70000}},
        {"server": {"port": "80"}},
        {"server": {"strict_fields": "yes"}},
        {"server": {"request_limit": "8M"}},
        {"memory": {"budget": "75"}},
        {"memory": {"headroom": 0.1}},
        {"defaults": {"top_p": 0}},
        {"scheduling": {"max_wait": "30"}},
        {"scheduling": {"max_wait": -1}},
        {"scheduling": {"max_wait": "never"}},
        {"scheduling": {"load_timeout": 0}},
        {"scheduling": {"stall_timeout": 4.9}},
        {"scheduling": {"min_residency": "3 times"}},
        {"scheduling": {"ttl": "forever"}},
        {"scheduling": {"max_queued": "5"}},
        {"unlisted": {"hub": "mlx-community/*"}},
        {"unlisted": {"hub": [""]}},
        {"unlisted": {"hub": ["mlx-community"]}},
        {"unlisted": {"hub": ["a b/*"]}},
        {"models": {"a": {"source": "./a", "priority": 101}}},
        {"models": {"a": {"source": "./a", "ttl": "x"}}},
        {"models": {}},
        {"models": {"a:b": {"source": "./a"}}},
        {"models": {"a": {}}},
        {"models": {"a": {"source": "./a", "max_adaptors": 1}}},
        {"models": {"a": {"source": "./a", "prompt_cache": {"entries": -1}}}},
        {"models": {"a": {"source": "./a", "prompt_cache": {"bytes": 1}}}},
        {"models": {"a": {"source": "./a", "aliases": "b"}}},
        {"models": {"a": {"source": "./a", "aliases": {"b c": {}}}}},
        {"models": {"a": {"source": "./a", "aliases": {"b": {"top_q": 1}}}}},
        {"models": {"a": {"source": "./a", "aliases": {"b": []}}}},
        {"models": {"a": {"source": "./a", "chat_template": 1}}},
        {"models": {"a": {"source": "./a", "chat_template_args": ["b"]}}},
        {"defaults": {"stop": "END"}},
        {"defaults": {"xtc_threshold": 0.6}},
        {"server": {"n_limit": 0}},
        {"models": {"a": {"source": "./a", "adapters": {"b c": "./x"}}}},
    ],
)
def test_what_the_schema_refuses(more: dict[str, Any]) -> None:
    assert not validator.is_valid({"models": {"a": {"source": "./a"}}, **more})


@given(
    st.text(st.characters(codec="ascii", exclude_characters="$\n"), max_size=12)
    | st.from_regex(DURATION_PATTERN, fullmatch=True).filter(lambda text: "\n" not in text)
    | st.sampled_from(["never", "Never", "30", True, None, []])
    | st.floats(allow_nan=False)
    | st.integers()
)
def test_the_schema_and_the_parser_agree_on_durations(value: object) -> None:
    try:
        parse_lifetime(value)
        legal = True
    except ValueError:
        legal = False
    assert validator.is_valid({"scheduling": {"ttl": value}, "models": {"a": {"source": "./a"}}}) == legal
