"""Names to Refs."""

from __future__ import annotations

import builtins
import io
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from mlx_roster.config import KeyEntry
from mlx_roster.config.load import parse
from mlx_roster.core import Ref
from mlx_roster.errors import AdapterNotFound, InvalidRequest, ModelNotFound, ModelRequired
from mlx_roster.registry.catalog import NEIGHBOURS, Catalog
from mlx_roster.registry.unlisted import KEPT

ROSTER = """
default_model: gpt-4o
models:
  atlas:
    source: ./nowhere/atlas
    aliases: [gpt-4o, chat]
    adapters:
      pirate: ./nowhere/pirate
      french: {source: ./nowhere/french, aliases: [atlas-fr]}
  org/scribe-4bit: {source: org/scribe-4bit}
"""


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(parse(ROSTER, name="roster.yaml", base=Path("/nowhere")))


@pytest.mark.parametrize(
    ("model", "adapters", "ref"),
    [
        ("atlas", None, Ref("atlas")),
        ("gpt-4o", None, Ref("atlas")),
        ("atlas:pirate", None, Ref("atlas", "pirate")),
        ("gpt-4o:pirate", None, Ref("atlas", "pirate")),
        ("atlas-fr", None, Ref("atlas", "french")),
        ("atlas", "pirate", Ref("atlas", "pirate")),
        ("chat", "french", Ref("atlas", "french")),
        ("atlas:pirate", "pirate", Ref("atlas", "pirate")),
        ("org/scribe-4bit", None, Ref("org/scribe-4bit")),
        (None, None, Ref("atlas")),
        (None, "pirate", Ref("atlas", "pirate")),
    ],
)
def test_resolves(catalog: Catalog, model: str | None, adapters: str | None, ref: Ref) -> None:
    assert catalog.resolve(model, adapters) == ref


class Touched(Exception):
    """The disk or the network was asked for something."""


@contextmanager
def untouchable() -> Iterator[None]:
    """Whatever looks at the disk, or opens a socket, fails within the block."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise Touched(args)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "open", "scandir", "listdir", "readlink", "getcwd", "access"):
            patch.setattr(os, name, refuse)
        patch.setattr(io, "open", refuse)
        patch.setattr(builtins, "open", refuse)
        patch.setattr(socket, "socket", refuse)
        yield


def test_unknown_model_is_404_with_close_names_and_touches_no_disk(catalog: Catalog) -> None:
    with (
        pytest.raises(ModelNotFound, match=r"no model 'atlass' in the roster; did you mean atlas\b"),
        untouchable(),
    ):
        catalog.resolve("atlass")
    with pytest.raises(AdapterNotFound), untouchable():
        catalog.resolve("atlas", "./nowhere/pirate")
    with untouchable():
        assert catalog.adapter(catalog.resolve("atlas", "pirate")) is not None


def test_it_is_the_rule_that_has_the_disk_touched() -> None:
    by_path, by_repo = catalog_of("unlisted: {paths: true}"), catalog_of("unlisted: {hub: ['org/*']}")
    with pytest.raises(Touched), untouchable():
        by_path.resolve("models/atlas")
    with pytest.raises(Touched), untouchable():
        by_path.resolve("atlas", "models/pirate")
    with untouchable():
        assert by_repo.resolve("org/other") == Ref("org/other")


#: What nobody may name, whatever the rules: relative to a folder that has models/atlas, in a folder that has secret.
NEVER = [
    "../secret",
    "models/../../secret",
    "models/../models/atlas",
    "models/out",
    "models/out/../atlas",
    "models/circle",
    "/etc",
    "//etc",
    "~",
    "~root",
    ".",
    "./",
    "models",
    "models/atlas/config.json",
    "models/missing",
    "C:\\models\\atlas",
    "C:models/atlas",
    "models\\atlas",
    "file:///etc",
    "https://hub.example/org/name",
    "models/atlas\0",
    "models/atlas\n",
    "\ud800",
    "",
    ":",
    "::",
    "atlas:pirate:pirate",
    "x" * 10_000,
    "x/" * 1000,
    "x" * 300,
    "evil--corp/model",
    "org/..",
    "mlx-community/a/b",
    "mlx-community",
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A server's directory, beside a secret."""
    for folder in ("secret", "here/models/atlas", "here/adapters/pirate", "here/adapters/bare", "here/mlx-community/x"):
        (tmp_path / folder).mkdir(parents=True)
    here = tmp_path / "here"
    for folder in (tmp_path / "secret", here / "models" / "atlas"):
        (folder / "config.json").touch()
    (tmp_path / "secret" / "adapter_config.json").touch()
    (here / "adapters" / "pirate" / "adapter_config.json").touch()
    (here / "adapters" / "bare" / "adapters.safetensors").touch()
    (here / "models" / "out").symlink_to(tmp_path / "secret")
    (here / "models" / "latest").symlink_to("atlas")
    (here / "models" / "circle").symlink_to("circle")
    return here


def catalog_of(rules: str = "", directory: Path | None = None) -> Catalog:
    return Catalog(
        parse(f"{rules}\n{ROSTER}", name="roster.yaml", base=Path("/nowhere")), directory or Path("/nowhere")
    )


@pytest.mark.parametrize("rules", ["", "unlisted: {paths: true, hub: ['mlx-community/*']}"])
@pytest.mark.parametrize("name", NEVER, ids=range(len(NEVER)))
def test_paths_traversals_and_hub_ids_in_model_or_adapters_are_404(name: str, rules: str, directory: Path) -> None:
    catalog = catalog_of(rules, directory)
    with pytest.raises((ModelNotFound, AdapterNotFound)) as caught:
        catalog.resolve(name)
    assert len(caught.value.message) < 400
    assert catalog.entry(name) is None
    with pytest.raises(AdapterNotFound, match="it has pirate, french"):
        catalog.resolve("atlas", name)


@pytest.mark.parametrize("name", ["models/atlas", "./models/atlas", "mlx-community/other", "/etc/passwd"])
def test_without_rules_only_the_roster_counts(name: str, directory: Path) -> None:
    with pytest.raises(ModelNotFound):
        catalog_of(directory=directory).resolve(name)
    with pytest.raises(AdapterNotFound):
        catalog_of(directory=directory).resolve("atlas", "adapters/pirate")


@pytest.mark.parametrize("name", ["models/atlas", "./models/atlas/", "models/./atlas", "models/latest"])
def test_a_folder_below_the_servers_is_a_model_by_its_real_path(name: str, directory: Path) -> None:
    catalog = catalog_of("unlisted: {paths: true}", directory)
    ref = catalog.resolve(name)
    assert ref == Ref("models/atlas") == catalog.resolve(ref.id)
    entry = catalog.entry(ref.model)
    assert entry is not None
    assert entry.source == directory / "models" / "atlas"
    assert catalog.adapter(ref) is None
    assert catalog_of("unlisted: {paths: true}", directory).entry("models/atlas") == entry


@pytest.mark.parametrize("model", ["atlas", "models/atlas", None])
@pytest.mark.parametrize("name", ["adapters/pirate", "./adapters/bare"])
def test_a_folder_is_an_adapter_of_any_model(model: str | None, name: str, directory: Path) -> None:
    catalog = catalog_of("unlisted: {paths: true}", directory)
    ref = catalog.resolve(model, name)
    assert ref == Ref(model or "atlas", name.removeprefix("./")) == catalog.resolve(ref.id)
    adapter = catalog.adapter(ref)
    assert adapter is not None
    assert adapter.source == directory / name


def test_hub_repos_that_a_glob_allows(directory: Path) -> None:
    catalog = catalog_of("unlisted: {hub: ['mlx-community/*', 'org/?tlas']}", directory)
    assert catalog.resolve("mlx-community/other") == Ref("mlx-community/other")
    entry = catalog.entry("org/atlas")
    assert entry is not None
    assert entry.source == "org/atlas"
    for name in ("org/scribe", "mlx-communities/other", "MLX-Community/other"):
        assert catalog.entry(name) is None
    with pytest.raises(AdapterNotFound, match="it has none"):
        catalog.resolve("mlx-community/other", "pirate")


def test_a_folder_of_that_name_does_not_stand_in_for_a_repo(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    entry = catalog_of("unlisted: {hub: ['*']}", directory).entry("models/atlas")
    assert entry is not None
    assert entry.source == "models/atlas"


def test_what_the_roster_calls_so_comes_before_a_folder(directory: Path) -> None:
    (directory / "org" / "scribe-4bit").mkdir(parents=True)
    (directory / "org" / "scribe-4bit" / "config.json").touch()
    (directory / "pirate").mkdir()
    (directory / "pirate" / "adapter_config.json").touch()
    catalog = catalog_of("unlisted: {paths: true}", directory)
    entry = catalog.entry(catalog.resolve("org/scribe-4bit").model)
    assert entry is not None
    assert entry.source == "org/scribe-4bit"
    with pytest.raises(ModelNotFound, match="did you mean org/scribe-4bit"):
        catalog.resolve("./org/scribe-4bit")
    adapter = catalog.adapter(catalog.resolve("atlas", "pirate"))
    assert adapter is not None
    assert adapter.source == Path("/nowhere/nowhere/pirate")
    with pytest.raises(AdapterNotFound):
        catalog.resolve("atlas", "./pirate")


def test_a_folder_that_the_roster_lists_is_that_model(directory: Path) -> None:
    (directory / "models" / "current").symlink_to("atlas")
    models = "current: {source: ./models/current, adapters: {pirate: ./p}}, models/same: {source: ./models/same}"
    text = f"unlisted: {{paths: true}}\nmodels: {{{models}}}"
    (directory / "models" / "same").mkdir()
    (directory / "models" / "same" / "config.json").touch()
    catalog = Catalog(parse(text, name="r", base=directory), directory)
    for name in ("models/atlas", "./models/current", "models/latest"):
        assert catalog.resolve(name) == Ref("current")
    assert catalog.resolve("models/atlas:pirate") == Ref("current", "pirate")
    assert catalog.resolve("./models/same") == Ref("models/same")
    # What the entry's folder was once is one beside it.
    (directory / "models" / "current").unlink()
    (directory / "models" / "current").symlink_to("same")
    assert catalog.resolve("models/atlas") == Ref("models/atlas")


def test_a_repo_that_the_roster_lists_is_that_model(directory: Path) -> None:
    models = "old: {source: org/atlas, revision: v1}, atlas: {source: org/atlas}, pinned: {source: org/b, revision: v1}"
    text = f"unlisted: {{hub: ['org/*']}}\nmodels: {{{models}, elsewhere: {{source: other/a}}}}"
    catalog = Catalog(parse(text, name="r", base=directory), directory)
    assert catalog.resolve("org/atlas") == Ref("atlas")
    assert catalog.resolve("org/b") == Ref("org/b")
    with pytest.raises(ModelNotFound):
        catalog.resolve("other/a")  # no rule allows it


def test_unlisted_models_are_not_in_the_listing(directory: Path) -> None:
    catalog = catalog_of("unlisted: {paths: true, hub: ['*']}", directory)
    before = list(catalog)
    catalog.resolve("models/atlas")
    catalog.resolve("some/repo")
    assert list(catalog) == before


def test_entries_made_on_the_fly_are_bounded(directory: Path) -> None:
    catalog = catalog_of("unlisted: {hub: ['*/*']}", directory)
    for number in range(2 * KEPT):
        catalog.resolve(f"org/model-{number}")
    assert len(catalog._unlisted._models) == KEPT
    assert catalog.entry("org/model-0") is not None


def test_what_has_gone_since_it_was_resolved(directory: Path) -> None:
    catalog = catalog_of("unlisted: {paths: true}", directory)
    for ref in (Ref("gone"), Ref("gone", "pirate"), Ref("models/gone")):
        with pytest.raises(ModelNotFound):
            catalog.adapter(ref)
    with pytest.raises(AdapterNotFound, match=r"^atlas:gone is no longer there$"):
        catalog.adapter(Ref("atlas", "gone"))


def test_of_ten_thousand_names_few_are_compared() -> None:
    models = "".join(f"  org{n % 37}/model-{n:05d}-4bit: {{source: ./m}}\n" for n in range(2000))
    catalog = Catalog(parse(f"models:\n{models}", name="roster.yaml", base=Path("/nowhere")))
    for wrong in ("org5/model-00042-4bti", "rog5/model-00042-4bit", "org5/model-00042", "model-00042-4bit"):
        with pytest.raises(ModelNotFound, match=r"did you mean .*org5/model-00042-4bit"):
            catalog.resolve(wrong)
        assert len(set(catalog._neighbours(wrong))) <= 4 * NEIGHBOURS


def test_two_adapters_at_once_are_refused(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="already names the adapter"):
        catalog.resolve("atlas:pirate", "french")


def test_no_model_and_no_default_is_an_error() -> None:
    two = "models: {a: {source: ./a}, b: {source: ./b}}"
    with pytest.raises(ModelRequired):
        Catalog(parse(two, name="roster.yaml", base=Path("/"))).resolve(None)


def test_the_only_entry_is_the_default() -> None:
    assert Catalog(parse("models: {a: {source: ./a}}", name="r", base=Path("/"))).resolve(None) == Ref("a")


def test_of_a_thousand_adapters_a_message_names_some() -> None:
    adapters = "".join(f"      a{number}: ./nowhere/{number}\n" for number in range(1000))
    text = f"models:\n  atlas:\n    source: ./nowhere/atlas\n    adapters:\n{adapters}"
    with pytest.raises(AdapterNotFound) as refused:
        Catalog(parse(text, name="roster.yaml", base=Path("/nowhere"))).resolve("atlas", "b")
    assert refused.value.message.endswith("a18, a19 and 980 more")


# What a client may not know of


def sees(*globs: str) -> Callable[[Ref], bool]:
    key = KeyEntry(name="a", key=SecretStr("0123456789abcdef"), models=globs)
    return lambda ref: key.opens(ref.model, ref.adapter)


def test_a_folder_that_a_client_does_not_see_is_not_looked_at() -> None:
    catalog = catalog_of("unlisted: {paths: true}")
    for words in ("models/other", "./models/other", "models//other"):
        with pytest.raises(Touched), untouchable():
            catalog.resolve(words, sees=sees("models/*"))
        with pytest.raises(ModelNotFound), untouchable():
            catalog.resolve(words, sees=sees("atlas*"))
    with pytest.raises(Touched), untouchable():
        catalog.resolve("atlas", "adapters/x", sees=sees("atlas"))
    for globs in ("org/*", "atlas:pirate"):
        with untouchable():
            ref = catalog.resolve("atlas", "./adapters/x", sees=sees(globs))
        assert not sees(globs)(ref)


def test_a_folder_is_seen_by_where_it_really_is(directory: Path) -> None:
    catalog = catalog_of("unlisted: {paths: true}", directory)
    assert catalog.resolve("models/latest", sees=sees("models/*")) == Ref("models/atlas")
    ref = catalog.resolve("models/latest", sees=sees("models/latest"))
    assert (ref, sees("models/latest")(ref)) == (Ref("models/atlas"), False)


def test_what_comes_back_to_who_does_not_see_it_is_nothing_that_they_see(catalog: Catalog) -> None:
    for model, adapters in (("atlas", None), ("gpt-4o", None), ("atlas-fr", None), ("atlas", "nothing"), (None, None)):
        ref = catalog.resolve(model, adapters, sees=sees("org/*", "atlas:pirate"))
        assert not sees("org/*", "atlas:pirate")(ref)
    # That it names two adapters is said to who sees the first.
    assert catalog.resolve("atlas-fr", "pirate", sees=sees("atlas:pirate")) == Ref("atlas", "french")
    with pytest.raises(InvalidRequest):
        catalog.resolve("atlas-fr", "pirate", sees=sees("atlas"))


def test_names_in_errors_are_those_that_a_client_sees(catalog: Catalog) -> None:
    with pytest.raises(AdapterNotFound, match=r"it has pirate$"):
        catalog.resolve("atlas", "nothing", sees=sees("atlas:[np]*"))
    with pytest.raises(ModelNotFound, match="GET /v1/models lists those there are"):
        catalog.resolve("atlass", sees=sees("org/*"))
    with pytest.raises(ModelNotFound, match=r"did you mean atlas:pirate\?"):
        catalog.resolve("atlaspirate", sees=sees("atlas:pirate"))
