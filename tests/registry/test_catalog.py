"""Names to Refs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_roster.config.load import parse
from mlx_roster.core import Ref
from mlx_roster.errors import AdapterNotFound, InvalidRequest, ModelNotFound, ModelRequired
from mlx_roster.registry.catalog import Catalog

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


def test_unknown_model_is_404_with_close_names_and_touches_no_disk(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'atlass' in the roster; did you mean atlas\b"):
        catalog.resolve("atlass")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "./nowhere/atlas",
        "mlx-community/other",
        "",
        ":",
        "atlas:pirate:pirate",
        "x" * 10_000,
    ],
)
def test_paths_traversals_and_hub_ids_in_model_are_404(catalog: Catalog, name: str) -> None:
    with pytest.raises((ModelNotFound, AdapterNotFound)) as caught:
        catalog.resolve(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["../pirate", "./nowhere/pirate", "", "/", "x" * 10_000])
def test_paths_in_adapters_are_404_naming_those_there_are(catalog: Catalog, name: str) -> None:
    with pytest.raises(AdapterNotFound, match="it has pirate, french"):
        catalog.resolve("atlas", name)


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
