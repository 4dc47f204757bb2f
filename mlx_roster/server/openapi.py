"""`GET /openapi.json`: what the routes take and answer, made of the very schemas that requests are checked by."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_roster import __version__
from mlx_roster.errors import AdminRequired, HostNotAllowed, ModelNotAllowed, OriginNotAllowed, RosterError
from mlx_roster.registry import Registry
from mlx_roster.registry.overview import ModelStatus, Overview, Reload
from mlx_roster.server.access import RULES, Rule
from mlx_roster.server.errors import ANSWERS
from mlx_roster.server.openai import answers
from mlx_roster.server.openai.fields import INERT, REFUSED
from mlx_roster.server.openai.schema import ChatRequest, TextRequest

Json = dict[str, Any]

_SHAPES: dict[str, Any] = {
    shape.__name__: shape
    for shape in (
        *(ChatRequest, TextRequest),
        *(answers.ChatCompletion, answers.ChatChunk, answers.TextCompletion, answers.TextChunk),
        *(answers.ModelList, answers.ModelEntry, answers.HealthState, answers.ErrorBody),
        *(Overview, ModelStatus, Reload),
    )
}
_REQUESTS = ("ChatRequest", "TextRequest")

_HEADERS: dict[str, Json] = {
    "x-request-id": {"description": "The request's own, if it had one.", "schema": {"type": "string"}},
    "x-roster-wait-ms": {
        "description": "From the request until a model was leased to it.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-roster-load-ms": {
        "description": "Of that, how long the model was loaded.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "x-roster-ignored": {
        "description": "The request's fields that had no effect, separated by commas.",
        "schema": {"type": "string"},
    },
    "www-authenticate": {"description": "What is missing.", "schema": {"const": "Bearer"}},
    "retry-after": {
        "description": "Seconds after which asking again may help.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}

#: What may go wrong, by status. 500 is a bug of ours; 405 is about routes, not operations. 401 and 403 come with the
#: route's rule.
_READING = (404, 500)
_ACTING = (400, 404, 408, 413, 415, 429, 500, 502, 503, 507)
_GENERATING = (400, 404, 408, 413, 415, 422, 429, 500, 502, 503, 507)

#: What 403 may mean where a route has this rule, beside that the server was asked by a wrong name or from a wrong page.
_FORBIDDEN: dict[Rule, tuple[type[RosterError], ...]] = {
    Rule.INFER: (ModelNotAllowed,),
    Rule.OPERATE: (AdminRequired,),
    Rule.ADMIN: (AdminRequired,),
}

_KEY: Json = {
    "type": "http",
    "scheme": "bearer",
    "description": "One of the keys in auth.keys of the roster. Where it has none, none is needed.",
}

_EXAMPLES: dict[str, dict[str, Json]] = {
    "ChatRequest": {
        "chat": {"model": "qwen", "messages": [{"role": "user", "content": "Say this is a test."}]},
        "stream": {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Why is the sky blue?"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.7,
            "max_tokens": 200,
        },
        "tools": {
            "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                    },
                }
            ],
        },
        "structured": {
            "messages": [{"role": "user", "content": "Who wrote Faust?"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "author",
                    "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
                },
            },
        },
    },
    "TextRequest": {
        "text": {"model": "qwen", "prompt": "Once upon a time", "max_tokens": 20},
        "scores": {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}


class Document:
    """The endpoint."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Made when it is first asked for, which takes a good deal longer than a token.
        roster = self._registry.roster
        body = await asyncio.to_thread(_encoded, roster.server.n_limit, keyed=bool(roster.auth.keys))
        await Response(body, media_type="application/json")(scope, receive, send)


@lru_cache(maxsize=1)
def _encoded(n_limit: int, *, keyed: bool) -> bytes:
    return msgspec.json.encode(document(n_limit, keyed=keyed))


def document(n_limit: int, *, keyed: bool = False) -> Json:
    """An OpenAPI 3.1 document of every route. A request's `n` is at most `n_limit`; a `keyed` server wants API keys."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlx-roster",
            "version": __version__,
            "description": "Many MLX models and LoRA adapters behind one endpoint that speaks OpenAI's API.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {path: _guarded(path, item, keyed=keyed) for path, item in _paths().items()},
        "components": {"schemas": _schemas(n_limit), "headers": _HEADERS, "securitySchemes": {"key": _KEY}},
    }


def _guarded(path: str, item: Json, *, keyed: bool) -> Json:
    """A path's operations, each with who may ask for it, as `access.RULES` has that."""
    rule = RULES[path.replace("{id}", "{id:path}")]
    forbidden: tuple[type[RosterError], ...] = (HostNotAllowed, OriginNotAllowed, *_FORBIDDEN.get(rule, ()))
    refusals = {"403": _refusal(403, forbidden), **_refusals((431,))}
    # Without keys, one that is sent all the same does no harm.
    security: list[Json] = [{"key": []}] if keyed else [{}, {"key": []}]
    if rule is Rule.PUBLIC:
        security = []
    else:
        refusals |= _refusals((401,))
    return {
        method: operation
        if method == "parameters"
        else {**operation, "security": security, "responses": {**operation["responses"], **refusals}}
        for method, operation in item.items()
    }


class _Untitled(GenerateJsonSchema):
    """Titles that are field names once more help nobody."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schemas(n_limit: int) -> dict[str, Json]:
    made, shared = TypeAdapter.json_schemas(
        [
            (name, "validation" if name in _REQUESTS else "serialization", TypeAdapter(shape))
            for name, shape in _SHAPES.items()
        ],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    # What is a reference itself is among those that all share.
    own = {name: schema for (name, _), schema in made.items() if "$ref" not in schema}
    schemas: dict[str, Json] = own | shared.get("$defs", {})
    for name in _REQUESTS:
        _open(schemas[name], n_limit)
    return schemas


def _open(schema: Json, n_limit: int) -> None:
    """A request may have more fields than the schema names: those without effect, and those that nobody knows."""
    schema["additionalProperties"] = True
    fields = schema["properties"]
    fields["n"]["anyOf"][0]["maximum"] = n_limit
    fields |= {name: {"description": "Accepted, without effect on the answer."} for name in sorted(INERT)}
    fields |= {name: {"type": "null", "description": f"Refused: {why}."} for name, why in REFUSED.items()}


def _paths() -> dict[str, Json]:
    chat = _generating("ChatRequest", "ChatCompletion", "ChatChunk")
    status = {"summary": "Everything there is to say of models.", "responses": _answers("Overview", _READING)}
    model_id = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "An id or alias; it may contain slashes.",
        "schema": {"type": "string", "minLength": 1},
        "example": "qwen",
    }
    return {
        "/v1/chat/completions": {"post": {"summary": "Continue a chat.", "operationId": "chat", **chat}},
        "/chat/completions": {"post": {"summary": "The same.", "operationId": "chatWithoutVersion", **chat}},
        "/v1/completions": {
            "post": {
                "summary": "Continue one text or several.",
                "operationId": "text",
                **_generating("TextRequest", "TextCompletion", "TextChunk"),
            }
        },
        "/v1/models": {
            "get": {"summary": "Every model and adapter.", "responses": _answers("ModelList", (500,))},
        },
        "/v1/models/{id}": {
            "parameters": [model_id],
            "get": {"summary": "One of them.", "responses": _answers("ModelEntry", (404, 500))},
        },
        "/health": {"get": {"summary": "All is well.", "responses": _state("A model hangs, or the server stops.")}},
        "/ready": {"get": {"summary": "Its preloads have ended.", "responses": _state("They have not, or it stops.")}},
        "/metrics": {"get": {"summary": "For Prometheus.", "responses": _other("text/plain", (500,))}},
        "/openapi.json": {"get": {"summary": "This document.", "responses": _other("application/json", (500,))}},
        "/admin/status": {"get": status},
        "/admin/events": {
            "get": {"summary": "The same, then every change.", "responses": _other("text/event-stream", _READING)},
        },
        "/admin/reload": {
            "post": {
                "summary": "Read the roster file anew.",
                "responses": _answers("Reload", (400, 408, 413, 415, 500)),
            },
        },
        "/admin/models/{id}": {
            "parameters": [model_id],
            "get": {"summary": "One model.", "responses": _answers("ModelStatus", _READING)},
        },
        **{f"/admin/models/{{id}}/{verb}": _deed(verb, model_id) for verb in ("load", "unload", "pin", "unpin")},
    }


def _generating(request: str, whole: str, chunk: str) -> Json:
    refused = ("retry-after", "www-authenticate")
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS if name not in refused}
    answer = {
        "description": "The answer.",
        "headers": headers,
        "content": {"application/json": {"schema": _ref(whole)}, "text/event-stream": {"schema": _event(chunk)}},
    }
    examples = {name: {"value": value} for name, value in _EXAMPLES[request].items()}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(request), "examples": examples}},
        },
        "responses": {"200": answer, **_refusals(_GENERATING)},
    }


def _event(chunk: str) -> Json:
    """Each event of a stream. OpenAPI 3.1 has no words for the stream that they make together."""
    says = {"type": "string", "contentMediaType": "application/json"}
    return {
        "type": "object",
        "description": f"One event: a {chunk}, or an error, and the last of all is [DONE].",
        "properties": {
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {**says, "contentSchema": {"anyOf": [_ref(chunk), _ref("ErrorBody")]}},
                ]
            }
        },
        "required": ["data"],
    }


def _deed(verb: str, model_id: Json) -> Json:
    flags = ("force", "wait") if verb == "unload" else ()
    query = [{"name": flag, "in": "query", "schema": {"type": "boolean"}} for flag in flags]
    responses = _answers("ModelStatus", _ACTING)
    if verb == "unload":
        responses["202"] = {**responses["200"], "description": "It goes as soon as nobody uses it."}
    return {
        "parameters": [model_id],
        "post": {"summary": f"{verb.capitalize()} a model.", "parameters": query, "responses": responses},
    }


def _state(otherwise: str) -> Json:
    answers = _answers("HealthState", (500,))
    return {**answers, "503": {**answers["200"], "description": otherwise}}


def _answers(shape: str, statuses: Iterable[int]) -> Json:
    return {"200": _answer("The answer.", "application/json", _ref(shape)), **_refusals(statuses)}


def _other(media_type: str, statuses: Iterable[int]) -> Json:
    schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    return {"200": _answer("The answer.", media_type, schema), **_refusals(statuses)}


def _answer(description: str, media_type: str, schema: Json) -> Json:
    headers = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    return {"description": description, "headers": headers, "content": {media_type: {"schema": schema}}}


def _refusals(statuses: Iterable[int]) -> Json:
    """Each with the codes that it may have, from the one table of errors."""
    return {
        str(status): _refusal(status, [error for error, found in ANSWERS.items() if found.status == status])
        for status in statuses
    }


def _refusal(status: int, errors: Iterable[type[RosterError]]) -> Json:
    said = f"{http.HTTPStatus(status).phrase}: {', '.join(sorted({error.code for error in errors}))}."
    refusal = _answer(said, "application/json", _ref("ErrorBody"))
    for name in {401: ["www-authenticate"], 429: ["retry-after"], 503: ["retry-after"]}.get(status, []):
        refusal["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    return refusal


def _ref(shape: str) -> Json:
    return {"$ref": f"#/components/schemas/{shape}"}
