"""The OpenAPI document says what the server does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def document(client: Any) -> Any:
    """As the server gives it."""
    return client.get("/openapi.json").json()


def test_every_address_of_the_interface_is_described(document: Any) -> None:
    from p4q_edge.runtime.http.api.routes import api_routes

    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    served = {(route.path, method) for route in api_routes() for method in route.methods or () if method != "HEAD"}
    assert described == served
    assert document["openapi"] == "3.1.0"


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*map(references, value.values()), set())
    return set().union(*map(references, value), set()) if isinstance(value, list) else set()


def test_every_schema_that_is_named_is_there(document: Any) -> None:
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert {"ClassifyAnswer", "EmbedAnswer", "HeadsAnswer", "TeachAnswer", "Refusal"} <= names
    assert names <= set(document["components"]["schemas"])


def test_answers_have_the_fields_of_their_schema(client: Any, document: Any, photos: list[bytes]) -> None:
    schemas = document["components"]["schemas"]
    answers = {
        "ClassifyAnswer": client.post("/classify", content=photos[0]),
        "EmbedAnswer": client.post("/embed", content=photos[0]),
        "HeadsAnswer": client.get("/heads"),
        "Health": client.get("/healthz"),
        "Refusal": client.post("/classify"),
    }
    for name, answer in answers.items():
        found = set(answer.json())
        assert set(schemas[name].get("required", ())) <= found <= set(schemas[name]["properties"]), name


def test_it_tells_of_the_token(serve: Callable[..., Any], document: Any) -> None:
    assert "security" not in document
    token = "a-token-of-thirty-two-characters"
    found = serve(token=token).get("/openapi.json", headers={"Authorization": f"Bearer {token}"}).json()
    assert found["security"] == [{"token": []}]
    assert token not in str(found)
