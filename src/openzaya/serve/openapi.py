"""`/openapi.json`: what the service understands, from the very types that read it."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

import openzaya
from openzaya.serve.chat_request import ChatRequest, RsaFields
from openzaya.serve.completions import CompletionRequest

_REFUSALS = {
    "400": "The request cannot be run",
    "401": "No key, or one that is not known here",
    "403": "Not this service's host",
    "404": "There is no such model, run or rollout",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "Too many requests at once",
    "500": "Unforeseen",
    "502": "The source of tokens failed",
    "503": "The service is going down",
    "504": "The deadline passed before there was any answer",
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 description of the service."""
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation"), (RsaFields, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    components = {**schemas["$defs"], "Error": _ERROR_SCHEMA}
    _spread_rsa_fields(components)
    paths = {
        "/v1/chat/completions": {"post": _posted("A chat reply under Markovian RSA", "ChatRequest", stream=True)},
        "/v1/completions": {"post": _posted("Text continued as it is", "CompletionRequest", stream=True)},
        "/v1/models": {"get": _got("The model, and the model with each preset that fits")},
        "/runs": {"post": _posted("Start a run that goes on without its client", "ChatRequest", status="202")},
        "/runs/{id}/events": {"get": _got("The records of a run as they come", "id", kind="text/event-stream")},
        "/runs/{id}/rollouts/{round}/{index}": {"get": _got("One whole rollout of a run", "id", "round", "index")},
        "/runs/{id}/page": {"get": _got("The run as one HTML file", "id", kind="text/html")},
        "/runs/{id}/cancel": {"post": _got("End a run with every rollout at its source", "id")},
        "/health/live": {"get": _got("The process is alive")},
        "/health/ready": {"get": _got("New work is taken (503: not any more)")},
        "/metrics": {"get": _got("Figures for Prometheus", kind="text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenZAYA reasoning service", "version": openzaya.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _spread_rsa_fields(components: dict[str, Any]) -> None:
    """On the wire Zyphra's fields lie beside OpenAI's, under any of their names."""
    fields = components.pop("RsaFields")["properties"]
    body = components["ChatRequest"]["properties"]
    for name in list(body):
        if name.startswith("\0"):
            del body[name]
    known = {str(field.validation_alias.choices[0]): field.validation_alias for field in _aliased()}
    for first, aliases in known.items():
        for name in aliases.choices:
            body[str(name)] = fields[first]


def _aliased() -> list[Any]:
    return [field for field in RsaFields.model_fields.values() if field.validation_alias is not None]


def _posted(summary: str, schema: str, *, stream: bool = False, status: str = "200") -> dict[str, Any]:
    kinds = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        kinds["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {status: {"description": said, "content": error} for status, said in _REFUSALS.items()}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
    return {
        "summary": summary,
        "requestBody": body,
        "responses": {status: {"description": "The reply", "content": kinds}, **refusals},
    }


def _got(summary: str, *places: str, kind: str = "application/json") -> dict[str, Any]:
    """What is fetched, or done, at an address with these places in it."""
    answer: dict[str, Any] = {"200": {"description": summary, "content": {kind: {}}}}
    if not places:
        return {"summary": summary, "responses": answer}
    kinds = {"id": "string"}
    given = [
        {"name": name, "in": "path", "required": True, "schema": {"type": kinds.get(name, "integer")}}
        for name in places
    ]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {status: {"description": _REFUSALS[status], "content": error} for status in ("400", "401", "403", "404")}
    return {"summary": summary, "parameters": given, "responses": answer | refusals}
