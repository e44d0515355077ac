"""`/classify` and `/embed`: what the Python API says, for each image by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.classification.predictions import Prediction


def expected(classifier: ZeroShotClassifier, photo: bytes) -> Prediction:
    found = classifier.classify(photo)
    assert isinstance(found, Prediction)
    return found


def test_one_image_as_the_body(client: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    for photo in photos:
        answer = client.post("/classify", content=photo)
        assert answer.status_code == 200
        document, prediction = answer.json(), expected(classifier, photo)
        assert document["head"] == "built-in"
        (found,) = document["predictions"]
        assert (found["label"], found["known"]) == (prediction.label, prediction.known)
        assert found["score"] == pytest.approx(prediction.score, abs=1e-6)
        assert [(entry["label"]) for entry in found["topk"]] == [label for label, _ in prediction.topk]
        assert answer.headers["server-timing"].startswith("answer;dur=")


def test_several_images_of_a_form_in_order(client: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    files = [("image", (f"{number}.png", photo)) for number, photo in enumerate(photos)]
    answers = client.post("/classify", files=files).json()["predictions"]
    assert [answer["label"] for answer in answers] == [expected(classifier, photo).label for photo in photos]
    assert len({answer["label"] for answer in answers}) > 1, "pictures that all give one answer show no order"


def test_a_damaged_image_fails_for_itself_only(client: Any, photos: list[bytes]) -> None:
    files = [("image", ("a.png", photos[0])), ("image", ("b.png", b"damaged")), ("image", ("c.png", photos[2]))]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert "label" in first
    assert "label" in third
    assert second["error"]["type"] == "InputError"
    assert "image of 7 bytes is not one of JPEG, PNG" in second["error"]["message"]
    alone = client.post("/classify", content=b"damaged")
    assert alone.status_code == 422
    assert alone.json()["predictions"][0]["error"] == second["error"]
    counted = client.get("/metrics").text
    assert 'p4q_edge_images_total{outcome="answered"} 2' in counted
    assert 'p4q_edge_images_total{outcome="refused"} 2' in counted


def test_embeddings(client: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    files = [("image", ("a.png", photo)) for photo in photos[:3]]
    document = client.post("/embed", files=files).json()
    rows = np.array([answer["embedding"] for answer in document["embeddings"]], np.float32)
    assert document["dim"] == rows.shape[1] == classifier.card.embedding_dim
    np.testing.assert_allclose(rows, classifier.embed(photos[:3]), atol=1e-6)


def test_how_many_classes_and_which_threshold(client: Any, photos: list[bytes]) -> None:
    answer = client.post("/classify?top_k=1&threshold=1.0", content=photos[0]).json()["predictions"][0]
    assert len(answer["topk"]) == 1
    assert answer["topk"][0]["threshold"] == 1.0
    assert answer["known"] is False
    assert client.post("/classify?threshold=0", content=photos[0]).json()["predictions"][0]["known"] is True


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("top_k=0", "top_k must be a whole number between 1 and 1000, got 0."),
        ("top_k=1.5", "top_k must be a whole number"),
        ("top_k=many", "top_k must be a number, got 'many'."),
        ("top_k=nan", "top_k must be a whole number"),
        ("threshold=2", "threshold must be between 0 and 1, got 2. Leave it out for the fitted one."),
        ("head=none", "no head is named 'none'; there are built-in."),
        ("topk=2", "'topk' is no parameter of this address, which takes head, top_k, threshold."),
        ("top_k=1&top_k=2", "top_k is given 2 times; send it once."),
    ],
)
def test_a_wrong_question(client: Any, photos: list[bytes], query: str, said: str) -> None:
    answer = client.post(f"/classify?{query}", content=photos[0])
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_embeddings_take_no_question_of_classes(client: Any, photos: list[bytes]) -> None:
    answer = client.post("/embed?top_k=2", content=photos[0])
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message == "'top_k' is no parameter of this address, which takes head."
    assert client.post("/embed?head=built-in", content=photos[0]).status_code == 200


def test_no_image(client: Any) -> None:
    answer = client.post("/classify")
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "type": "UsageError",
        "message": "the request holds no image. Send its bytes: curl --data-binary @photo.jpg URL/classify",
    }
    form = client.post("/embed", files=[("note", (None, "text"))])
    assert form.status_code == 400
    assert "the form holds no file" in form.json()["error"]["message"]


def test_more_images_than_a_request_may_hold(serve: Callable[..., Any], photos: list[bytes]) -> None:
    from p4q_edge.runtime.http import Limits

    client = serve(limits=Limits(images=2))
    answer = client.post("/classify", files=[("image", ("a.png", photo)) for photo in photos[:3]])
    assert answer.status_code == 400
    assert "Too many files" in answer.json()["error"]["message"]
    assert client.post("/classify", files=[("image", ("a.png", photo)) for photo in photos[:2]]).status_code == 200


def test_what_does_not_exist(client: Any) -> None:
    answer = client.get("/nothing")
    message = "there is no address '/nothing'. GET /openapi.json describes those that there are."
    assert (answer.status_code, answer.json()) == (404, {"error": {"type": "Not Found", "message": message}})
    answer = client.get("/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"] == {"type": "Method Not Allowed", "message": "'/classify' takes POST, got GET."}
    assert client.get("/v2/nothing").json() == {"error": message.replace("/nothing", "/v2/nothing")}


def test_a_failure_of_the_server_says_nothing_of_its_inside(
    serve: Callable[..., Any], classifier: ZeroShotClassifier, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the engine")

    monkeypatch.setattr(classifier, "answer", broken)
    answer = serve().post("/classify", content=photos[0])
    assert answer.status_code == 500
    assert answer.json() == {"error": {"type": "Internal", "message": "the server failed; see its log."}}
