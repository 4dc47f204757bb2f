"""Every field of both generating routes, over HTTP: absent, null, at its bounds, past them, and of a wrong type.

A row says what each value that is accepted makes of the Generation that reaches the worker, and of nothing else in it:
a field that is accepted and ignored fails here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest

from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.schema import ChatRequest, TextRequest
from tests.server.harness import Running, assert_error, running
from tests.server.request_table import CHAT, ROUTES, TEXT, TOOLS, USER, Row, named

ROSTER = {
    "defaults": {},
    "models": {
        "atlas": {
            "source": "/fake/atlas",
            "aliases": ["gpt-4o"],
            "adapters": {"pirate": {"source": "/fake/pirate"}},
        },
    },
}

CASES = [(path, name) for path, (table, _) in ROUTES.items() for name in table]
LEFT_OUT = [(path, name) for path, (table, _) in ROUTES.items() for name in [*table, *sorted(INERT), *REFUSED]]


@pytest.fixture(scope="module")
def asked() -> Iterator[Running]:
    with running(**ROSTER) as server:
        server.workers.capabilities["atlas"] = {"drafts": ("small",)}
        yield server


@pytest.fixture(scope="module")
def client(asked: Running) -> Iterator[httpx2.Client]:
    with asked.client() as client:
        yield client


def flat(generation: Any) -> dict[str, Any]:
    """A Generation by paths, those of its prompt and sampling one by one."""
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(generation))
    if fields["prompt"]["type"] == "chat":
        fields |= {f"prompt.{name}": value for name, value in fields.pop("prompt").items()}
    return fields | {f"sampling.{name}": value for name, value in fields.pop("sampling").items()}


def sent(asked: Running, client: httpx2.Client, path: str, body: dict[str, Any]) -> tuple[httpx2.Response, list[Any]]:
    asked.generations.clear()
    response = client.post(path, json=body)
    generations = [flat(generation) for generation in asked.generations]
    # The one thing in it that is never twice the same.
    assert {generation.pop("request") for generation in generations} <= {response.headers["x-request-id"]}
    return response, generations


@pytest.mark.parametrize(("schema", "table"), [(ChatRequest, CHAT), (TextRequest, TEXT)])
def test_the_table_has_every_field(schema: type[ChatRequest | TextRequest], table: dict[str, Row]) -> None:
    assert table.keys() == schema.model_fields.keys()


@pytest.mark.parametrize(("path", "name"), CASES)
def test_what_is_accepted_reaches_the_worker_and_changes_nothing_else(
    asked: Running, client: httpx2.Client, path: str, name: str
) -> None:
    table, required = ROUTES[path]
    _, [without] = sent(asked, client, path, required)
    for good in table[name].good:
        body = {**required, **table[name].others, **good.others, name: good.value}
        response, [generation, *_] = sent(asked, client, path, body)
        assert response.status_code == 200, (good.value, response.text)
        assert generation == {**without, **good.makes}, good.value
        assert good.answered(response), (good.value, response.text)
        assert "x-roster-ignored" not in response.headers


@pytest.mark.parametrize(("path", "name"), CASES)
def test_what_is_not_accepted_is_refused_by_name(asked: Running, client: httpx2.Client, path: str, name: str) -> None:
    table, required = ROUTES[path]
    for value in [*table[name].wide, *table[name].wrong]:
        response, reached = sent(asked, client, path, {**required, **table[name].others, name: value})
        param = response.json()["error"]["param"]
        assert param == name or param.startswith((f"{name}.", f"{name}[")), value
        assert_error(response, 400, "invalid_request", param)
        assert reached == []


@pytest.mark.parametrize(("path", "name"), LEFT_OUT)
def test_null_is_the_same_as_leaving_a_field_out(asked: Running, client: httpx2.Client, path: str, name: str) -> None:
    _, required = ROUTES[path]
    response, reached = sent(asked, client, path, {**required, name: None})
    if name in required:
        assert_error(response, 400, "invalid_request", name)
        assert_error(client.post(path, json={}), 400, "invalid_request", name)
    else:
        assert response.status_code == 200, response.text
        assert reached == sent(asked, client, path, required)[1]


@pytest.mark.parametrize("path", ROUTES)
def test_the_other_routes_fields_are_refused(asked: Running, client: httpx2.Client, path: str) -> None:
    table, required = ROUTES[path]
    others = {**CHAT, **TEXT}.keys() - table.keys()
    assert others
    for name in others:
        response, reached = sent(asked, client, path, {**required, name: {**CHAT, **TEXT}[name].good[-1].value})
        assert_error(response, 400, "invalid_request", name)
        assert reached == []


@pytest.mark.parametrize("path", ROUTES)
def test_keep_alive_reaches_the_registry(asked: Running, client: httpx2.Client, path: str) -> None:
    def expires_in(keep_alive: Any) -> float | None:
        response, _ = sent(asked, client, path, {**ROUTES[path][1], "keep_alive": keep_alive})
        assert response.is_success
        asked.idle()
        return client.get("/admin/models/atlas").json()["expires_in"]

    assert expires_in("never") is None
    # The entry's own is 15 minutes.
    assert 900 < (expires_in(3600) or 0) <= 3600
    assert 900 < (expires_in("1.5h") or 0) <= 5400
    unloads = asked.workers.history.count("stop atlas")
    assert sent(asked, client, path, {**ROUTES[path][1], "keep_alive": 0})[0].is_success
    asked.seen("stop atlas", unloads + 1)


JSON = {"response_format": {"type": "json_object"}}
CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"top_logprobs": 0}, "top_logprobs"),
    ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
    ({"top_logprobs": 2, "logprobs": 2}, "top_logprobs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tool_choice": named("run")}, "tool_choice"),
    ({"tool_choice": "required", **TOOLS, **JSON}, "response_format"),
    ({"tool_choice": named("run"), **TOOLS, **JSON}, "response_format"),
    ({"tool_choice": "required", **TOOLS, "min_tokens": 1}, "min_tokens"),
    ({"tool_choice": named("run"), **TOOLS, "ignore_eos": True}, "ignore_eos"),
    ({"chat_template_kwargs": {"a": 1}, "chat_template_args": {"a": 2}}, "chat_template_args"),
    ({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort"),
]
BOTH_CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"stream_options": {}}, "stream_options"),
    ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({"max_completion_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({**JSON, "min_tokens": 1}, "min_tokens"),
    ({**JSON, "ignore_eos": True}, "ignore_eos"),
    ({"model": "atlas:pirate", "adapters": "corsair"}, "adapters"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *(("/v1/chat/completions", *clash) for clash in [*CLASHES, *BOTH_CLASHES]),
        *(("/v1/completions", *clash) for clash in BOTH_CLASHES),
    ],
)
def test_fields_that_contradict_each_other(
    asked: Running, client: httpx2.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    response, reached = sent(asked, client, path, {**ROUTES[path][1], **fields})
    assert_error(response, 400, "invalid_request", param)
    assert reached == []


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"best_of": 1, "n": 2}])
def test_best_of_must_be_n(asked: Running, client: httpx2.Client, fields: dict[str, Any]) -> None:
    response, _ = sent(asked, client, "/v1/completions", {"prompt": "hi", **fields})
    assert_error(response, 400, "unsupported_parameter", "best_of")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_tool_choice_that_asks_for_nothing_needs_no_tools(asked: Running, client: httpx2.Client, choice: str) -> None:
    fields = {"messages": [USER], "tool_choice": choice, "parallel_tool_calls": True}
    response, [generation] = sent(asked, client, "/v1/chat/completions", fields)
    assert response.is_success
    assert generation["tools"] is None


def test_both_names_of_the_template_variables_may_say_the_same(asked: Running, client: httpx2.Client) -> None:
    same = {"a": 1, "reasoning_effort": "low"}
    fields = {"messages": [USER], "chat_template_kwargs": same, "chat_template_args": same, "reasoning_effort": "low"}
    _, [generation] = sent(asked, client, "/v1/chat/completions", fields)
    assert generation["prompt.template_args"] == same
