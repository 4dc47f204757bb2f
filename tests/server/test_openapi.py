"""`/openapi.json` is right, and schemathesis, which we did not write, finds nothing that it does not say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Mount

from mlx_roster.server.app import create_app
from mlx_roster.server.errors import ANSWERS
from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.schema import ChatRequest, TextRequest
from mlx_roster.server.openapi import document
from tests.server.harness import Running, assert_error, running

#: Has what the document's examples name.
ROSTER: dict[str, Any] = {"models": {"qwen": {"source": "/fake/qwen", "adapters": {"sql": {"source": "/fake/sql"}}}}}
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
]


@pytest.fixture(scope="module")
def documented() -> Iterator[Running]:
    with running(**ROSTER) as server:
        yield server


@pytest.fixture(scope="module")
def client(documented: Running) -> Iterator[httpx2.Client]:
    with documented.client() as client:
        yield client


DOCUMENT = document(n_limit=8)
# All but the one response without an end, and the route that is another's double.
api = schemathesis.openapi.from_dict(DOCUMENT).exclude(path=["/admin/events", "/chat/completions"])


@api.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_nothing_is_undocumented(case: Case, documented: Running) -> None:
    case.call_and_validate(base_url=documented.url, checks=CHECKS)


KEY = "laptop-key-0123456789"
KEYED = document(n_limit=8, keyed=True)
keyed_api = schemathesis.openapi.from_dict(KEYED).exclude(path=["/admin/events", "/chat/completions"])


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    keys = [{"name": "laptop", "key": KEY, "scopes": ["infer", "admin"]}]
    with running(**ROSTER, auth={"keys": keys}) as server:
        yield server


@keyed_api.parametrize()
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_nothing_is_undocumented_with_a_key_or_without(case: Case, keyed: Running) -> None:
    case.call_and_validate(base_url=keyed.url, checks=CHECKS, headers={"authorization": f"Bearer {KEY}"})
    checks = [check for check in CHECKS if check is not negative_data_rejection]
    response = case.call_and_validate(base_url=keyed.url, checks=checks, headers={"authorization": "Bearer wrong"})
    public = case.operation.path in ("/health", "/ready")
    assert (response.status_code == 401) != public, response.text


def test_a_server_with_keys_says_that_it_wants_them(keyed: Running, client: httpx2.Client) -> None:
    assert client.get("/openapi.json").json() == DOCUMENT
    with keyed.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        served = client.get("/openapi.json").json()
    assert served == KEYED
    assert served["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in served["paths"].items():
        for method, operation in operations.items():
            if method != "parameters":
                public = path in ("/health", "/ready")
                assert operation["security"] == ([] if public else [{"key": []}])
                assert ("401" in operation["responses"]) != public
                assert "403" in operation["responses"]


def test_it_is_served_as_it_is_made(client: httpx2.Client) -> None:
    response = client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT
    assert client.get("/openapi.json").content == response.content


def test_it_says_how_many_answers_this_server_gives() -> None:
    with running(server={"n_limit": 2}) as server, server.client() as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert schemas["ChatRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == 2
        assert_error(client.post("/v1/completions", json={"model": "atlas", "prompt": "x", "n": 3}), 400,
                     "invalid_request", "n")  # fmt: skip


def test_it_is_valid_openapi() -> None:
    api.validate()


def routed(routes: Iterable[Any], above: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            assert route.app is not None
            yield from routed(route.app._app.routes, above + route.path)
        else:
            for method in route.methods - {"HEAD"}:
                yield (above + route.path).replace("{id:path}", "{id}"), method.lower()


def test_it_has_every_route(documented: Running) -> None:
    app = create_app(documented.registry, documented._reload)
    written = {
        (path, method)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert set(routed(app._app.routes)) == written
    assert (
        DOCUMENT["paths"]["/chat/completions"]["post"].keys()
        == DOCUMENT["paths"]["/v1/chat/completions"]["post"].keys()
    )


@pytest.mark.parametrize("shape", [ChatRequest, TextRequest])
def test_it_has_every_field(shape: type[ChatRequest | TextRequest]) -> None:
    schema = DOCUMENT["components"]["schemas"][shape.__name__]
    assert schema["properties"].keys() == {*shape.model_fields, *INERT, *REFUSED}
    assert schema["additionalProperties"] is True
    assert [name for name, field in schema["properties"].items() if "description" not in field] in ([], ["messages"])


def test_its_examples_are_what_it_asks_for(client: httpx2.Client) -> None:
    for path, operations in DOCUMENT["paths"].items():
        if "requestBody" in operations.get("post", {}):
            content = operations["post"]["requestBody"]["content"]["application/json"]
            schema = {**content["schema"], "components": DOCUMENT["components"]}
            assert content["examples"]
            for example in content["examples"].values():
                jsonschema.Draft202012Validator(schema).validate(example["value"])
                response = client.post(path, json=example["value"])
                assert response.is_success, response.text
                assert "x-roster-ignored" not in response.headers


def test_every_error_is_documented_somewhere() -> None:
    said = [
        response["description"]
        for operations in DOCUMENT["paths"].values()
        for method, operation in operations.items()
        if method != "parameters"
        for response in operation["responses"].values()
    ]
    assert [cls.code for cls in ANSWERS if not any(cls.code in words for words in said)] == ["method_not_allowed"]
