"""What a request means by what it leaves out, and what of an entry its worker is given to load."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from mlx_roster.config import Defaults, Roster
from mlx_roster.config.load import parse
from mlx_roster.core import Ref
from mlx_roster.registry import Registry
from mlx_roster.registry.catalog import Catalog
from mlx_roster.testing import FakeSources, FakeWorkers
from tests.registry.test_registry import run, say_once

ATLAS = Ref("atlas")
PIRATE = Ref("atlas", "pirate")

LEVELS = ("alias", "adapter", "entry", "file")


def roster(text: str, base: Path = Path("/fake")) -> Roster:
    return parse(text, name="r", base=base)


def said(levels: tuple[str, ...]) -> Catalog:
    """A roster in which each of `levels` says a temperature that is its place in LEVELS; all say something else too."""
    own = {
        level: f"{{top_k: {place}" + (f", temperature: {place}}}" if level in levels else "}")
        for place, level in enumerate(LEVELS)
    }
    return Catalog(
        roster(
            f"defaults: {own['file']}\n"
            "models:\n"
            "  atlas:\n"
            "    source: ./atlas\n"
            f"    defaults: {own['entry']}\n"
            f"    aliases: {{warm: {own['alias']}, plain: }}\n"
            "    adapters:\n"
            f"      pirate: {{source: ./pirate, defaults: {own['adapter']}, aliases: {{captain: {own['alias']}}}}}\n"
        )
    )


@pytest.mark.parametrize(
    "levels", [chosen for size in range(len(LEVELS) + 1) for chosen in combinations(LEVELS, size)], ids="-".join
)
@pytest.mark.parametrize(
    ("words", "adapters", "heard"),
    [
        ("warm:pirate", None, LEVELS),
        ("warm", "pirate", LEVELS),
        ("captain", None, LEVELS),
        ("captain", "pirate", LEVELS),
        ("plain:pirate", None, LEVELS[1:]),
        ("atlas:pirate", None, LEVELS[1:]),
        (None, "pirate", LEVELS[1:]),
        ("warm", None, ("alias", "entry", "file")),
        ("plain", None, LEVELS[2:]),
        ("atlas", None, LEVELS[2:]),
        (None, None, LEVELS[2:]),
    ],
)
def test_each_level_wins_over_the_next_field_by_field(
    levels: tuple[str, ...], words: str | None, adapters: str | None, heard: tuple[str, ...]
) -> None:
    catalog = said(levels)
    defaults = catalog.defaults(catalog.resolve(words, adapters), words)
    first = next((level for level in heard if level in levels), None)
    assert defaults.temperature == (None if first is None else LEVELS.index(first))
    assert defaults.top_k == LEVELS.index(heard[0])
    assert defaults.model_copy(update={"temperature": None, "top_k": None}) == Defaults()


def test_an_alias_that_is_the_default_model_has_its_defaults() -> None:
    catalog = Catalog(
        roster(
            "default_model: warm\n"
            "models: {atlas: {source: ./atlas, aliases: {warm: {temperature: 1.2}}}, scribe: {source: ./scribe}}"
        )
    )
    assert catalog.defaults(catalog.resolve(None), None) == Defaults(temperature=1.2)
    assert catalog.defaults(catalog.resolve("atlas"), "atlas") == Defaults()


def test_a_model_that_is_not_listed_has_the_files_defaults() -> None:
    catalog = Catalog(
        roster(
            "defaults: {top_k: 7}\ngeneration_config: true\nunlisted: {hub: ['org/*']}\n"
            "models: {atlas: {source: ./atlas, aliases: {warm: {top_k: 1}}}}"
        )
    )
    assert catalog.defaults(catalog.resolve("org/other"), "org/other") == Defaults(top_k=7)
    assert catalog.uses_generation_config(Ref("org/other"))


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("entry", [True, False, None])
def test_a_models_own_word_counts_where_the_file_or_its_entry_says_so(file: bool, entry: bool | None) -> None:
    own = "" if entry is None else f", generation_config: {str(entry).lower()}"
    text = f"generation_config: {str(file).lower()}\nmodels: {{atlas: {{source: ./a, adapters: {{pirate: ./p}}{own}}}}}"
    catalog = Catalog(roster(text))
    expected = file if entry is None else entry
    assert (catalog.uses_generation_config(ATLAS), catalog.uses_generation_config(PIRATE)) == (expected, expected)


def test_defaults_and_names_change_under_a_loaded_model() -> None:
    async def test() -> None:
        workers = FakeWorkers()
        first = "models: {atlas: {source: ./atlas, aliases: [warm], adapters: {pirate: ./pirate}}}"
        second = (
            "generation_config: true\n"
            "models: {atlas: {source: ./atlas, aliases: {warm: {temperature: 1.2}}, defaults: {top_k: 2},"
            " adapters: {pirate: {source: ./pirate, defaults: {min_p: 0.5}}}}}"
        )
        async with Registry(roster(first), workers, FakeSources(), 10) as r:
            await say_once(r, ATLAS)
            assert r.defaults(PIRATE, "warm:pirate") == Defaults()
            assert not r.uses_generation_config(ATLAS)
            r.reconfigure(roster(second), 10)
            await say_once(r, ATLAS)
            assert r.defaults(PIRATE, "warm:pirate") == Defaults(temperature=1.2, top_k=2, min_p=0.5)
            assert r.uses_generation_config(ATLAS)
        assert workers.history.count("load atlas") == 1

    run(test())


def test_a_worker_is_given_the_template_and_its_variables(tmp_path: Path) -> None:
    async def test() -> None:
        workers = FakeWorkers()
        (tmp_path / "t.jinja").write_text("{{ name }}")
        text = "models: {atlas: {source: ./a, chat_template: t.jinja, chat_template_args: {name: x}}}"
        async with Registry(roster(text, tmp_path), workers, FakeSources(), 10) as r:
            await say_once(r, ATLAS)
            source = workers.workers["atlas"].source
            assert (source.chat_template, source.template_args) == ("{{ name }}", {"name": "x"})
            r.reconfigure(roster("models: {atlas: {source: ./a}}", tmp_path), 10)
            await say_once(r, ATLAS)
            source = workers.workers["atlas"].source
            assert (source.chat_template, source.template_args) == (None, {})

    run(test())


def test_another_text_or_another_variable_loads_the_model_anew(tmp_path: Path) -> None:
    async def test() -> None:
        workers = FakeWorkers()
        file = tmp_path / "t.jinja"
        file.write_text("one")
        text = "models: {atlas: {source: ./a, chat_template: t.jinja, chat_template_args: {name: x}}}"
        async with Registry(roster(text, tmp_path), workers, FakeSources(), 10) as r:
            for loads, (template, now) in enumerate(
                [
                    ("one", text),
                    ("two", text),
                    ("two", text.replace("name: x", "name: y")),
                ],
                start=1,
            ):
                file.write_text(template)
                r.reconfigure(roster(now, tmp_path), 10)
                await say_once(r, ATLAS)
                r.reconfigure(roster(now, tmp_path), 10)
                await say_once(r, ATLAS)
                assert workers.history.count("load atlas") == loads
            source = workers.workers["atlas"].source
            assert (source.chat_template, source.template_args) == ("two", {"name": "y"})

    run(test())
