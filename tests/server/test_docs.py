"""The pages on HTTP name everything that there is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mlx_roster.metrics import Metrics
from mlx_roster.registry.overview import Change, Memory, ModelBytes, ModelStatus, Overview, Preloads, Reload
from mlx_roster.server.errors import ANSWERS
from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.schema import ChatRequest, TextRequest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("code", sorted({cls.code for cls in ANSWERS}))
def test_every_error_code(code: str) -> None:
    assert f"`{code}`" in (DOCS / "api.md").read_text()


@pytest.mark.parametrize("shape", [ChatRequest, TextRequest])
def test_every_field_of_a_request(shape: type[ChatRequest | TextRequest]) -> None:
    page = (DOCS / "api.md").read_text()
    assert [name for name in (*shape.model_fields, *INERT, *REFUSED) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("shape", [Overview, Memory, Preloads, Reload, ModelStatus, ModelBytes, Change])
def test_every_field_of_the_status(shape: type) -> None:
    page = (DOCS / "admin.md").read_text()
    assert [field.name for field in fields(shape) if f"`{field.name}`" not in page] == []


def test_every_metric() -> None:
    nothing = Overview("", 0.0, Memory(0, 0, 0), 0, Preloads(), None, ())
    body, _ = Metrics(lambda: nothing).render("application/openmetrics-text; version=1.0.0")
    kinds = {family.name: family.type for family in text_string_to_metric_families(body.decode())}
    page = (DOCS / "admin.md").read_text()
    names = {f"{name}_total" if kind == "counter" else name for name, kind in kinds.items()}
    assert len(names) == 14
    assert {name for name in names if f"`{name}`" not in page} == set()
