"""The OpenAPI document says what the server does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def asked(client: Any, photos: list[bytes]) -> Iterator[tuple[str, str, int, Any]]:
    """Yield path, method, expected status and answer of requests that go well and of those that do not."""
    image, damaged = photos[0], b"no picture"
    lesson = [("sea", (f"{n}.png", photo)) for n, photo in enumerate(photos[:3])]
    lesson += [("sun", (f"{n}.png", photo)) for n, photo in enumerate(photos[3:6])]
    rows: tuple[tuple[str, str, str, int, dict[str, Any]], ...] = (
        ("/classify", "post", "?top_k=2&threshold=0.5", 200, {"content": image}),
        ("/classify", "post", "", 200, {"files": [("image", image), ("image", damaged)]}),
        ("/classify", "post", "", 422, {"content": damaged}),
        ("/classify", "post", "?top_k=0", 400, {"content": image}),
        ("/classify", "post", "?top_k=1001", 400, {"content": image}),
        ("/classify", "post", "?threshold=1.5", 400, {"content": image}),
        ("/classify", "post", "?head=none", 400, {"content": image}),
        ("/classify", "post", "", 413, {"content": bytes(17 << 20)}),
        ("/classify", "post", "", 403, {"content": image, "headers": {"Origin": "http://elsewhere"}}),
        ("/embed", "post", "", 200, {"content": image}),
        ("/embed", "post", "", 422, {"content": damaged}),
        ("/embed", "post", "?top_k=1", 400, {"content": image}),
        ("/heads/{name}/teach", "post", "", 201, {"files": lesson}),
        ("/heads/{name}/teach", "post", "", 400, {}),
        ("/heads/{name}/teach", "post", "?add=perhaps", 400, {"files": lesson}),
        ("/heads/{name}/teach", "post", "", 422, {"files": lesson[:3]}),
        ("/heads", "get", "", 200, {}),
        ("/heads", "get", "", 421, {"headers": {"Host": "elsewhere"}}),
        ("/heads/active", "put", "", 200, {"json": {"name": "mine"}}),
        ("/heads/active", "put", "", 400, {"json": {"name": "none"}}),
        ("/heads/{name}/save", "post", "", 200, {}),
        ("/heads/{name}/save", "post", "?to=there", 400, {}),
        ("/healthz", "get", "", 200, {}),
        ("/openapi.json", "get", "", 200, {}),
    )
    for path, method, query, status, words in rows:
        yield path, method, status, client.request(method, path.replace("{name}", "mine") + query, **words)


def test_answers_and_refusals_are_those_that_are_described(client: Any, document: Any, photos: list[bytes]) -> None:
    """Each status is named, or the default, and each body has the schema that stands there."""
    jsonschema = pytest.importorskip("jsonschema")
    met = set()
    for path, method, status, answer in asked(client, photos):
        assert answer.status_code == status, (path, answer.text)
        responses = document["paths"][path][method]["responses"]
        described = responses.get(str(status)) or responses["default"]
        schema = described["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
        met.add((path, method, str(status)))
    named = {
        (path, method, status)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
        if status not in ("default", "503", "413", "403")  # each once above, and not of every address
    }
    assert named - met <= {("/metrics", "get", "200")}


def test_bounds_of_numbers_are_those_that_are_kept(document: Any) -> None:
    query = {given["name"]: given["schema"] for given in document["paths"]["/classify"]["post"]["parameters"]}
    assert (query["top_k"]["minimum"], query["top_k"]["maximum"]) == (1, 1000)
    assert (query["threshold"]["minimum"], query["threshold"]["maximum"]) == (0, 1)


def test_it_tells_of_the_token(serve: Callable[..., Any], document: Any) -> None:
    assert "security" not in document
    token = "a-token-of-thirty-two-characters"
    found = serve(token=token).get("/openapi.json", headers={"Authorization": f"Bearer {token}"}).json()
    assert found["security"] == [{"token": []}]
    assert token not in str(found)
    for path, methods in found["paths"].items():
        without = serve(token=token).get(path.replace("{name}", "mine")).status_code != 401
        assert all((operation.get("security") == []) is without for operation in methods.values()), path
