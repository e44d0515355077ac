"""Heads over HTTP: listed, chosen, taught, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.head import load_head


def lesson(photos: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Two classes of six photographs each."""
    return [("cup" if number < 6 else "plate", (f"{number}.png", photo)) for number, photo in enumerate(photos)]


def test_the_list(client: Any) -> None:
    document = client.get("/heads").json()
    (head,) = document["heads"]
    assert (document["active"], document["read_only"]) == ("built-in", False)
    assert head == {
        "name": "built-in",
        "class_names": ["circle", "square", "triangle"],
        "threshold": 0.0,
        "class_thresholds": {},
        "saved": True,
    }


def test_a_head_is_taught_answers_and_is_saved(
    client: Any, classifier: ZeroShotClassifier, photos: list[bytes], tiny_engine: Path
) -> None:
    taught = client.post("/heads/shelf/teach", files=lesson(photos))
    assert taught.status_code == 201, taught.text
    document = taught.json()
    assert document["photographs"] == {"cup": 6, "plate": 6}
    assert document["held_out"] == 12
    assert document["head"]["class_names"] == ["cup", "plate"]
    assert document["head"]["saved"] is False
    assert not tiny_engine.with_name("tiny.onnx.heads").exists()

    same = classifier.teach({"cup": photos[:6], "plate": photos[6:]})
    np.testing.assert_allclose(classifier.head("shelf").text_embedding, same.text_embedding, atol=1e-5)  # type: ignore[attr-defined]
    answer = client.post("/classify?head=shelf", content=photos[0]).json()
    assert answer["head"] == "shelf"
    assert {entry["label"] for entry in answer["predictions"][0]["topk"]} == {"cup", "plate"}
    assert client.post("/classify", content=photos[0]).json()["head"] == "built-in"

    saved = client.post("/heads/shelf/save").json()
    assert saved == {"name": "shelf", "file": "shelf.safetensors", "earlier_versions": 0}
    stored = load_head(tiny_engine.with_name("tiny.onnx.heads") / "shelf.safetensors")
    assert stored.class_names == ("cup", "plate")
    assert [head["saved"] for head in client.get("/heads").json()["heads"]] == [True, True]
    client.post("/heads/shelf/teach", files=lesson(photos[::-1]))
    assert [head["saved"] for head in client.get("/heads").json()["heads"]] == [True, False]
    assert client.post("/heads/shelf/save").json()["earlier_versions"] == 1


def test_there_is_an_end_to_new_heads_and_none_to_new_lessons(
    client: Any, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p4q_edge.runtime.http.service.MAX_HEADS", 2)
    assert client.post("/heads/shelf/teach", files=lesson(photos)).status_code == 201
    refused = client.post("/heads/table/teach", files=lesson(photos))
    assert refused.status_code == 400
    assert "the server holds 2 heads, and takes no more" in refused.json()["error"]["message"]
    assert client.post("/heads/shelf/teach", files=lesson(photos[::-1])).status_code == 201


def test_a_class_is_added(client: Any, photos: list[bytes]) -> None:
    files = [("cup", (f"{number}.png", photo)) for number, photo in enumerate(photos[:4])]
    document = client.post("/heads/more/teach?add=true", files=files).json()
    assert document["head"]["class_names"] == ["circle", "square", "triangle", "cup"]


def test_strangers_decide_the_threshold_and_are_no_class(client: Any, photos: list[bytes]) -> None:
    files = [*lesson(photos), ("else", ("x.png", photos[3])), ("else", ("y.png", photos[8]))]
    document = client.post("/heads/shelf/teach?unknown=else", files=files).json()
    assert document["head"]["class_names"] == ["cup", "plate"]
    assert document["head"]["threshold"] > 0


def test_a_head_is_chosen(client: Any, photos: list[bytes]) -> None:
    client.post("/heads/shelf/teach", files=lesson(photos))
    assert client.put("/heads/active", json={"name": "shelf"}).json()["active"] == "shelf"
    assert client.post("/classify", content=photos[0]).json()["head"] == "shelf"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/heads/built-in/teach", "'built-in' cannot be the name of a head"),
        ("/heads/a%20b/teach", "'a b' cannot be the name of a head"),
        ("/heads/x/teach?base=none", "no head is named 'none'"),
        ("/heads/x/teach?add=perhaps", "add must be true or false, got 'perhaps'."),
        ("/heads/x/teach?unkown=cup", "'unkown' is no parameter of this address, which takes base, add, unknown."),
        (
            "/heads/x/teach?unknown=else",
            "unknown=else names no field of the form, which has cup, plate. Send photographs that show none of the "
            "classes: curl -F else=@photo.jpg",
        ),
    ],
)
def test_a_wrong_lesson(client: Any, photos: list[bytes], path: str, said: str) -> None:
    answer = client.post(path, files=lesson(photos))
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/heads"), ("PUT", "/heads/active"), ("POST", "/heads/x/save")])
def test_heads_take_no_parameters(client: Any, method: str, path: str) -> None:
    answer = client.request(method, f"{path}?name=shelf", json={"name": "built-in"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "'name' is no parameter of this address, which takes none."


def test_photographs_that_cannot_be_used(client: Any, photos: list[bytes]) -> None:
    one = client.post("/heads/x/teach", files=lesson(photos)[:6])
    assert one.status_code == 422
    assert "a head needs two classes or more" in one.json()["error"]["message"]
    damaged = client.post("/heads/x/teach", files=[*lesson(photos), ("cup", ("z.png", b"damaged"))])
    assert damaged.status_code == 422
    assert "1 photograph cannot be read" in damaged.json()["error"]["message"]
    none = client.post("/heads/x/teach", content=photos[0])
    assert none.status_code == 400
    assert "send photographs as multipart/form-data" in none.json()["error"]["message"]
    assert client.get("/heads").json()["heads"][1:] == []


def test_what_cannot_be_saved_or_chosen(client: Any) -> None:
    assert "is part of the engine" in client.post("/heads/built-in/save").json()["error"]["message"]
    assert client.post("/heads/none/save").status_code == 400
    assert client.put("/heads/active", json={"name": "none"}).status_code == 400
    wrong = client.put("/heads/active", content=b"{")
    assert wrong.status_code == 400
    assert 'send {"name": "HEAD"}' in wrong.json()["error"]["message"]


def test_nothing_is_changed_where_it_is_read_only(serve: Callable[..., Any], photos: list[bytes]) -> None:
    client = serve(read_only=True)
    for answer in (
        client.post("/heads/shelf/teach", files=lesson(photos)),
        client.post("/heads/built-in/save"),
        client.put("/heads/active", json={"name": "built-in"}),
    ):
        assert answer.status_code == 403
        assert "this server is read-only" in answer.json()["error"]["message"]
    assert client.get("/heads").json()["read_only"] is True
    assert client.post("/classify", content=photos[0]).status_code == 200


def test_nothing_is_saved_that_the_next_start_would_refuse(
    client: Any, photos: list[bytes], keys_of_a_maker: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/heads/shelf/teach", files=lesson(photos))
    monkeypatch.setenv("P4Q_EDGE_TRUSTED_KEYS", str(keys_of_a_maker[1]))
    answer = client.post("/heads/shelf/save")
    assert answer.status_code == 400
    assert "this device loads only what a trusted key signed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b'{"name": ' + b"[" * 100_000, b"", b"[]"])
def test_a_choice_that_is_none(client: Any, body: bytes) -> None:
    answer = client.put("/heads/active", content=body)
    assert answer.status_code == 400
    assert 'send {"name": "HEAD"}' in answer.json()["error"]["message"]
