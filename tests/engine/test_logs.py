"""What the engine logs of a request names it, and quotes nothing of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mlx_roster.core import AdapterSource, Delta, Format, Generation, Text
from mlx_roster.loaders.adapters import Adapters
from mlx_roster.loaders.models import load
from mlx_roster.logs import JsonLines, TextLines, fields_of
from tests.engine import tiny
from tests.engine.test_loop import PROMPT, Broken, Vanishing, faulty
from tests.engine.tiny import Driven

SECRET = "Xyzzy"


def of(request: str, generation: Generation) -> Generation:
    return msgspec.structs.replace(generation, request=request)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "mlx_roster")
    return caplog


def refused(heard: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Who, and why, in the order in which it was said."""
    said = [fields_of(record) for record in heard.records]
    return [(about["request_id"], about["code"]) for about in said if about.get("event") == "rejected"]


def test_a_step_that_fails_names_all_that_it_takes_along(model: Path, heard: pytest.LogCaptureFixture) -> None:
    with faulty(model) as (engine, module):
        running = [engine.ask(of(name, tiny.request(PROMPT, 300))) for name in ("one", "two and more")]
        for sequence in running:
            engine.until_tokens(sequence, 3)
        module.fails = True
        engine.until_ended(*running)
    (record,) = (record for record in heard.records if record.levelno == logging.ERROR)
    assert record.getMessage() == 'a step failed, of request one "two and more"'
    assert fields_of(record) == {"request_ids": ["one", "two and more"]}
    assert "as told" in JsonLines().format(record)
    assert refused(heard) == [("one", "internal_error"), ("two and more", "internal_error")]


def test_what_cannot_be_prepared_is_named(model: Path, adapters: list[Path], heard: pytest.LogCaptureFixture) -> None:
    where = tiny.source(model)
    with Driven(load(where, lambda done, total: None), where, Broken()) as engine:
        engine.until_ended(engine.ask(of("one", tiny.request(PROMPT, 5, over=adapters[0]))))
    (record,) = (record for record in heard.records if record.levelno == logging.ERROR)
    assert record.getMessage() == "request one could not be prepared"
    assert fields_of(record) == {"request_id": "one"}
    assert "ZeroDivisionError" in TextLines().format(record)
    assert str(adapters[0]) not in TextLines().format(record)
    assert refused(heard) == [("one", "internal_error")]


@pytest.mark.parametrize("reader", [Vanishing, None])
def test_an_adapter_that_is_refused_names_the_request(
    model: Path, tmp_path: Path, heard: pytest.LogCaptureFixture, reader: type[Adapters] | None
) -> None:
    where = tiny.source(model)
    larger = tiny.write_model(tmp_path / "larger", hidden_size=64)
    over = tiny.write_adapter(tmp_path / "wrong", larger, seed=1)
    with Driven(load(where, lambda done, total: None), where, reader() if reader else None) as engine:
        engine.until_ended(engine.ask(of("one", tiny.request(PROMPT, 5, over=over))))
    assert refused(heard) == [("one", "adapter_incompatible")]


class Unspeakable(tiny.Recorder):
    """A link that cannot carry what some sequences say."""

    def step(self, deltas: list[Delta]) -> None:
        if any(delta.sequence == 1 for delta in deltas):
            raise ValueError(SECRET)
        super().step(deltas)


def test_what_cannot_be_passed_on_is_named(model: Path, heard: pytest.LogCaptureFixture) -> None:
    with tiny.driven(model, said=Unspeakable()) as engine:
        both = [engine.ask(of(name, tiny.request(PROMPT, 5))) for name in ("one", "two")]
        engine.until_ended(*both)
        assert both[1] not in engine.said.errors
    (record,) = (record for record in heard.records if record.levelno == logging.ERROR)
    assert record.getMessage() == "what request one is answered cannot be passed on"
    assert SECRET not in TextLines().format(record)
    assert refused(heard) == [("one", "internal_error")]


GRAMMARS: list[dict[str, Any]] = [
    {"type": SECRET},
    {"$ref": f"#/{SECRET}"},
    {"type": "string", "pattern": f"({SECRET}"},
    {"type": "object", "properties": {SECRET: {SECRET: SECRET}}},
]


def asking(**changes: Any) -> Generation:
    return msgspec.structs.replace(tiny.request(PROMPT, 5), **changes)


@pytest.mark.parametrize(
    "generation",
    [
        asking(prompt=Text(f"{SECRET} " * 2000)),
        asking(stop=(SECRET, "")),
        asking(adapter=AdapterSource(SECRET, f"/nowhere/{SECRET}")),
        *(asking(format=Format(msgspec.json.encode(schema).decode())) for schema in GRAMMARS),
    ],
)
def test_a_refusal_names_the_request_and_quotes_nothing(
    engine: Driven, heard: pytest.LogCaptureFixture, generation: Generation
) -> None:
    engine.until_ended(engine.ask(of("one", generation)))
    assert [who for who, _ in refused(heard)] in (["one"], [])
    for record in heard.records:
        assert SECRET not in TextLines().format(record)
        assert SECRET not in JsonLines().format(record)
