"""The OpenAPI document, with the schemas of the structures that the server really writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from p4q_edge.runtime.http import documents

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_STRUCTURES = (
    documents.ClassifyAnswer,
    documents.EmbedAnswer,
    documents.HeadsAnswer,
    documents.Choice,
    documents.TeachAnswer,
    documents.SavedAnswer,
    documents.Health,
    documents.Refusal,
)
_FILE = {"type": "string", "format": "binary"}
_IMAGES: Json = {
    "required": True,
    "content": {
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": {"type": "array", "items": _FILE}}}
        },
    },
}
_PHOTOGRAPHS: Json = {
    "required": True,
    "description": "The name of each field is that of a class; it may come several times.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "additionalProperties": {"type": "array", "items": _FILE}}}
    },
}
_CHOICE: Json = {"required": True, "content": {"application/json": {"schema": {"$ref": _REF.format(name="Choice")}}}}


def _query(name: str, about: str, kind: str) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": {"type": kind}}


_HEAD = _query("head", "name of the head that answers; the active one if it is left out", "string")
_TOP_K = _query("top_k", "classes in each answer", "integer")
_THRESHOLD = _query("threshold", "least score of a known answer; the fitted one if it is left out", "number")
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_BASE = _query("base", "head to start from", "string")
_ADD = _query("add", "keep the classes of the base and add new ones", "boolean")
_UNKNOWN = _query("unknown", "name of the field whose photographs show none of the classes", "string")


def _answer(about: str, name: str) -> Json:
    return {"description": about, "content": {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}}


def _operation(
    about: str, answer: str, *, status: int = 200, body: Json | None = None, query: tuple[Json, ...] = ()
) -> Json:
    failures = {"400": "wrong request", "413": "too large", "422": "no image can be used", "503": "busy, ask again"}
    responses = {str(status): _answer("done", answer)}
    if body is not None:
        responses |= {code: _answer(words, "Refusal") for code, words in failures.items()}
    if answer in ("ClassifyAnswer", "EmbedAnswer"):
        responses["422"] = _answer("no image can be used", answer)
    operation: Json = {"summary": about, "responses": responses}
    if query:
        operation["parameters"] = list(query)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _text(about: str, kind: str) -> Json:
    return {
        "summary": about,
        "responses": {"200": {"description": "done", "content": {kind: {"schema": {"type": "string"}}}}},
    }


def paths() -> Mapping[str, Mapping[str, Json]]:
    """Return what can be asked, by path and method."""
    return {
        "/classify": {
            "post": _operation(
                "Name what images show", "ClassifyAnswer", body=_IMAGES, query=(_HEAD, _TOP_K, _THRESHOLD)
            )
        },
        "/embed": {"post": _operation("Embed images", "EmbedAnswer", body=_IMAGES, query=(_HEAD,))},
        "/heads": {"get": _operation("List class sets", "HeadsAnswer")},
        "/heads/active": {
            "put": _operation("Choose the head that answers where none is named", "HeadsAnswer", body=_CHOICE)
        },
        "/heads/{name}/teach": {
            "post": _operation(
                "Learn a class set from photographs; it answers at once, and is not saved yet",
                "TeachAnswer",
                status=201,
                body=_PHOTOGRAPHS,
                query=(_NAME, _BASE, _ADD, _UNKNOWN),
            )
        },
        "/heads/{name}/save": {"post": _operation("Store a class set with the engine", "SavedAnswer", query=(_NAME,))},
        "/healthz": {"get": _operation("Say that the server answers", "Health")},
        "/metrics": {"get": _text("Counters for Prometheus", "text/plain")},
        "/openapi.json": {"get": _text("This document", "application/json")},
    }


def openapi_document(*, version: str, with_token: bool) -> Json:
    """Return the document; with a token it names the security scheme."""
    _, schemas = msgspec.json.schema_components(_STRUCTURES, ref_template=_REF)
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "P4Q Edge",
            "version": version,
            "description": "Classify images with an INT8 CLIP engine. KServe's protocol version 2 is served below /v2.",
        },
        "paths": paths(),
        "components": {"schemas": schemas},
    }
    if with_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found
