"""The OpenAPI document, with the schemas of the structures that the server really writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from p4q_edge.runtime.http import documents
from p4q_edge.runtime.http.settings import MAX_TOP_K, OPEN_PATHS

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


def _query(name: str, about: str, kind: str, **bounds: Any) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": {"type": kind, **bounds}}


_HEAD = _query("head", "name of the head that answers; the active one if it is left out", "string")
_TOP_K = _query("top_k", "classes in each answer", "integer", minimum=1, maximum=MAX_TOP_K, default=5)
_THRESHOLD = _query(
    "threshold", "least score of a known answer; the fitted one if it is left out", "number", minimum=0, maximum=1
)
_NAME = {"name": "name", "in": "path", "required": True, "description": "of a head", "schema": {"type": "string"}}
_BASE = _query("base", "head to start from", "string")
_ADD = _query("add", "keep the classes of the base and add new ones", "boolean", default=False)
_UNKNOWN = _query("unknown", "name of the field whose photographs show none of the classes", "string")


def _answer(about: str, name: str) -> Json:
    return {"description": about, "content": {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}}


def _operation(
    about: str,
    answer: str,
    *,
    status: int = 200,
    body: Json | None = None,
    query: tuple[Json, ...] = (),
    changes: bool = False,
) -> Json:
    responses = {str(status): _answer("done", answer)}
    if body is not None:
        responses["413"] = _answer("too large", "Refusal")
        responses["503"] = _answer("busy, ask again", "Refusal")
    if body is not None or query:
        responses["400"] = _answer("wrong request, or no such head", "Refusal")
    if body in (_IMAGES, _PHOTOGRAPHS):
        of_each = answer if body is _IMAGES else "Refusal"
        responses["422"] = _answer("no image can be used", of_each)
    if changes:
        responses["403"] = _answer("this server is read-only, or a page of another origin asks", "Refusal")
    responses["default"] = _answer("refused: no token, another name of this server, not in time", "Refusal")
    operation: Json = {"summary": about, "responses": responses}
    if query:
        operation["parameters"] = list(query)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _other(about: str, kind: str, schema: str) -> Json:
    done = {"description": "done", "content": {kind: {"schema": {"type": schema}}}}
    return {"summary": about, "responses": {"200": done, "default": _answer("refused", "Refusal")}}


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
            "put": _operation(
                "Choose the head that answers where none is named", "HeadsAnswer", body=_CHOICE, changes=True
            )
        },
        "/heads/{name}/teach": {
            "post": _operation(
                "Learn a class set from photographs; it answers at once, and is not saved yet",
                "TeachAnswer",
                status=201,
                body=_PHOTOGRAPHS,
                query=(_NAME, _BASE, _ADD, _UNKNOWN),
                changes=True,
            )
        },
        "/heads/{name}/save": {
            "post": _operation("Store a class set with the engine", "SavedAnswer", query=(_NAME,), changes=True)
        },
        "/healthz": {"get": _operation("Say that the server answers", "Health")},
        "/metrics": {"get": _other("Counters for Prometheus", "text/plain", "string")},
        "/openapi.json": {"get": _other("This document", "application/json", "object")},
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
        for path in OPEN_PATHS & set(found["paths"]):
            for operation in found["paths"][path].values():
                operation["security"] = []
    return found
