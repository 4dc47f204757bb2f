"""Keys in a roster file: what they may be, what they open, and that nothing ever says what they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mlx_roster.config import KeyEntry
from mlx_roster.config.load import load
from mlx_roster.errors import ConfigError
from tests.config.rosters import MINIMAL, problems, read

SECRET = "secret-0123456789"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def keyed(*keys: str) -> str:
    return f"{MINIMAL}auth: {{keys: [{', '.join(keys)}]}}"


def key(**fields: object) -> KeyEntry:
    return KeyEntry.model_validate({"name": "a", "key": SECRET, **fields})


def test_what_a_key_may_if_it_says_nothing() -> None:
    (entry,) = read(keyed(f"{{name: laptop, key: {SECRET}}}")).auth.keys
    assert (entry.name, entry.models, entry.scopes, entry.max_queued) == ("laptop", ("*",), ("infer",), None)
    assert read(MINIMAL).auth.keys == ()


def test_plain_from_the_environment_or_hashed_it_is_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSTER_KEY", SECRET)
    plain = read(keyed(f"{{name: a, key: {SECRET}}}"))
    from_environment = read(keyed('{name: a, key: "${ROSTER_KEY}"}'))
    hashed = read(keyed(f"{{name: a, key_sha256: {DIGEST}}}"))
    shouted = read(keyed(f"{{name: a, key_sha256: {DIGEST.upper()}}}"))
    digests = {roster.auth.keys[0].digest for roster in (plain, from_environment, hashed, shouted)}
    assert digests == {bytes.fromhex(DIGEST)}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["{name: a}"], "[0]: needs key or key_sha256, and not both"),
        ([f"{{name: a, key: {SECRET}, key_sha256: {DIGEST}}}"], "[0]: needs key or key_sha256, and not both"),
        ([f"{{key: {SECRET}}}"], "[0].name: is required"),
        ([f"{{name: a b, key: {SECRET}}}"], "[0].name: should be a name of up to 64 letters, digits, dots, "
         "dashes, underscores and @"),
        ([f"{{name: {'a' * 65}, key: {SECRET}}}"], "[0].name: should be a name of up to 64 letters, digits, dots, "
         "dashes, underscores and @"),
        ([f"{{name: 5, key: {SECRET}}}"], "[0].name: should be a string; put it in quotes"),
        (["{name: a, key: secret-01234567}"], "[0].key: should have at least 16 characters: "
         "openssl rand -hex 24 makes a good one"),
        (["{name: a, key: secret 0123456789}"], "[0].key: should be of printable ASCII characters, without spaces: "
         "it travels in a header"),
        (["{name: a, key: sécret-0123456789}"], "[0].key: should be of printable ASCII characters, without spaces: "
         "it travels in a header"),
        (["{name: a, key: 12345678901234567890}"], "[0].key: should be a string; put it in quotes"),
        ([f"{{name: a, key_sha256: {SECRET}}}"], "[0].key_sha256: should be the 64 hexadecimal digits of a SHA-256: "
         "printf %s KEY | shasum -a 256"),
        ([f"{{name: a, key: {SECRET}, models: []}}"], "[0].models: should not be empty"),
        ([f"{{name: a, key: {SECRET}, models: [a b]}}"], "[0].models[0]: should be a glob of model ids, "
         "as \"atlas*\", without spaces"),
        ([f"{{name: a, key: {SECRET}, scopes: []}}"], "[0].scopes: should not be empty"),
        ([f"{{name: a, key: {SECRET}, scopes: [root]}}"], "[0].scopes[0]: should be 'infer' or 'admin'"),
        ([f"{{name: a, key: {SECRET}, max_queued: -1}}"], "[0].max_queued: should be greater than or equal to 0"),
        ([f"{{name: a, kye: {SECRET}}}"], "[0].kye: unknown key, did you mean \"key\"?"),
        ([f"{{name: a, key: {SECRET}}}", f"{{name: a, key: {SECRET}-too}}"], ": the name a is given twice"),
        ([f"{{name: a, key: {SECRET}}}", f"{{name: b, key: {SECRET}}}"], ": two of them are the same key"),
        ([f"{{name: a, key: {SECRET}}}", f"{{name: b, key_sha256: {DIGEST}}}"], ": two of them are the same key"),
        ([SECRET], "[0]: should be a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_key(keys: list[str], said: str) -> None:
    found = problems(keyed(*keys))
    assert f"roster.yaml:2: auth.keys{said}" in found
    assert not any("secret" in line for line in found)


@pytest.mark.parametrize(
    "text",
    [
        'auth: {keys: [{name: a, key: !!int "${ROSTER_KEY}"}]}',
        'auth: {keys: "${ROSTER_KEY}"}',
        'auth: {keys: [{name: a, key: "${ROSTER_KEY}", scopes: ["${ROSTER_KEY}"]}]}',
        'auth: {keys: [{name: "${ROSTER_KEY}!", key: "${ROSTER_KEY}", models: "${ROSTER_KEY}"}]}',
        'auth: {keys: [{name: a, key: "${ROSTER_KEY}"}, {name: b, key: "${ROSTER_KEY}"}]}',
        'auth: {keys: [{name: a, key: "${ROSTER_KEY} "}]}',
        'auth: {keys: [{name: a, key_sha256: "${ROSTER_KEY}"}]}',
    ],
)
def test_no_complaint_repeats_a_secret(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROSTER_KEY", SECRET)
    path = tmp_path / "roster.yaml"
    path.write_text(f"{MINIMAL}{text}\n")
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert SECRET not in refused.value.message


def test_a_roster_does_not_tell_its_keys() -> None:
    roster = read(keyed(f"{{name: a, key: {SECRET}}}"))
    assert roster.auth.keys[0].digest != b""
    for said in (repr(roster), str(roster), repr(roster.model_dump()), roster.model_dump_json()):
        assert SECRET not in said


@pytest.mark.parametrize(
    ("globs", "opened", "closed"),
    [
        (["*"], ["atlas", "atlas:pirate", "org/scribe", "models/x:adapters/y"], []),
        (["atlas"], ["atlas", "atlas:pirate"], ["atlas2", "Atlas", "xatlas", "org/atlas", "atlas2:atlas"]),
        (["atlas*"], ["atlas", "atlas2", "atlas2:x", "atlas:pirate"], ["scribe", "org/atlas"]),
        (["atlas:pirate"], ["atlas:pirate"], ["atlas", "atlas:french", "atlas:pirate2"]),
        (["atlas:*"], ["atlas:pirate"], ["atlas", "atlas2:x"]),
        (["*:pirate"], ["atlas:pirate", "b:pirate"], ["atlas", "pirate"]),
        (["org/*"], ["org/scribe", "org/a/b", "org/scribe:x"], ["org", "orga/scribe"]),
        (["[ab]", "c?"], ["a", "b", "cd"], ["c", "ab", "cde"]),
        (["a.c"], ["a.c"], ["abc"]),
        (["a|b"], ["a|b"], ["a", "b"]),
    ],
)
def test_what_a_key_opens(globs: list[str], opened: list[str], closed: list[str]) -> None:
    entry = key(models=globs)

    def opens(name: str) -> bool:
        model, _, adapter = name.partition(":")
        return entry.opens(model, adapter or None)

    assert ([name for name in opened if not opens(name)], [name for name in closed if opens(name)]) == ([], [])


def test_two_rosters_differ_where_a_key_does() -> None:
    first, same, other = (read(keyed(f"{{name: a, key: {secret}}}")) for secret in (SECRET, SECRET, SECRET + "!"))
    assert first.auth.keys[0].digest
    assert first.auth.keys[0].opens("atlas")
    assert (first == same, first == other) == (True, False)
