"""KServe's protocol against the Python API: by hand, and with Triton's own client where it is installed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.classification.predictions import Prediction


def encoded(*files: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return a request with these files, and its headers."""
    blob = b"".join(struct.pack("<I", len(file)) + file for file in files)
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [len(files), 1]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(blob)}}], **more}).encode()
    return head + blob, {"Inference-Header-Content-Length": str(len(head))}


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer.json()["outputs"]}


def test_health_and_descriptions(client: Any, photos: list[bytes]) -> None:
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2").json()["name"] == "p4q-edge"
    names = [model["name"] for model in client.post("/v2/repository/index").json()]
    assert names == ["tiny", "tiny_engine"]
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(path + "/ready").status_code == 200
        document = client.get(path).json()
        assert document["inputs"] == [{"name": "encoded", "datatype": "BYTES", "shape": [-1, 1]}]
        assert [output["shape"] for output in document["outputs"]] == [[-1, 3], [-1, 3], [-1, 3], [-1, 1]]
        assert client.get(path + "/config").json()["input"][0]["data_type"] == "TYPE_STRING"
    for path in ("/v2/models/none", "/v2/models/tiny/versions/2", "/v2/models/none/ready"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "there are tiny, tiny_engine" in answer.json()["error"]


def test_files_in_and_names_out(client: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    body, headers = encoded(*photos)
    found = outputs(client.post("/v2/models/tiny/infer", content=body, headers=headers))
    predictions = classifier.classify(photos)
    assert isinstance(predictions, list)
    assert found["label"].tolist() == [[label for label, _ in prediction.topk] for prediction in predictions]
    scores = [[score for _, score in prediction.topk] for prediction in predictions]
    np.testing.assert_allclose(found["score"], scores, atol=1e-5)
    assert found["index"][:, 0].tolist() == [prediction.index for prediction in predictions]
    assert found["known"][:, 0].tolist() == [prediction.known for prediction in predictions]


def test_the_engine_itself(client: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    pixels = np.stack([classifier.prepare(photo) for photo in photos[:3]])
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    found = outputs(client.post("/v2/models/tiny_engine/infer", json={"inputs": [tensor]}))
    expected = classifier.run(pixels)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_a_head_is_a_model(client: Any, photos: list[bytes]) -> None:
    files = [("cup" if number < 6 else "plate", ("x.png", photo)) for number, photo in enumerate(photos)]
    assert client.post("/heads/shelf/teach", files=files).status_code == 201
    body, headers = encoded(photos[0])
    found = outputs(client.post("/v2/models/tiny-shelf/infer", content=body, headers=headers))
    assert set(found["label"][0]) == {"cup", "plate"}


def test_an_image_that_cannot_be_used_is_named(client: Any, photos: list[bytes]) -> None:
    body, headers = encoded(photos[0], b"damaged")
    answer = client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("image 1: image of 7 bytes is not one of JPEG, PNG")


@pytest.mark.parametrize(
    ("model", "tensor", "said"),
    [
        ("tiny", {"name": "image", "datatype": "UINT8", "shape": [1], "data": [1]}, "expected one input, encoded"),
        ("tiny", {"name": "encoded", "datatype": "UINT8", "shape": [1], "data": [1]}, "expected encoded as BYTES"),
        (
            "tiny_engine",
            {"name": "image", "datatype": "UINT8", "shape": [1], "data": [1]},
            "expected image as UINT8",
        ),
        ("tiny_engine", {"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}, "expected image as UINT8"),
    ],
)
def test_other_tensors_are_refused(client: Any, model: str, tensor: dict[str, Any], said: str) -> None:
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_limits_hold_here_too(serve: Callable[..., Any], photos: list[bytes]) -> None:
    from p4q_edge.runtime.http import Limits

    client = serve(limits=Limits(images=2, body_bytes=50_000))
    body, headers = encoded(*photos[:3])
    answer = client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"] == "a request holds an image or more, at most 2; got 3."
    large = client.post("/v2/models/tiny/infer", content=b"x" * 50_001)
    assert large.status_code == 413
    assert large.json()["error"].startswith("a request may have at most 50000 bytes.")
    packed = client.post("/v2/models/tiny/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415


def test_with_tritons_client(child: Any, classifier: ZeroShotClassifier, photos: list[bytes]) -> None:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    server = child()
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_model_metadata("tiny")["inputs"][0]["name"] == "encoded"
        given = http.InferInput("encoded", [len(photos), 1], "BYTES")
        given.set_data_from_numpy(np.array(photos, dtype=object)[:, np.newaxis])
        wanted = [http.InferRequestedOutput("label"), http.InferRequestedOutput("score", binary_data=False)]
        answer = client.infer("tiny", [given], outputs=wanted, request_id="a")
        predictions = [found for found in classifier.classify(photos) if isinstance(found, Prediction)]
        assert [row[0].decode() for row in answer.as_numpy("label")] == [found.label for found in predictions]
        np.testing.assert_allclose(answer.as_numpy("score")[:, 0], [found.score for found in predictions], atol=1e-5)
        pixels = np.stack([classifier.prepare(photo) for photo in photos])
        raw = http.InferInput("image", list(pixels.shape), "UINT8")
        raw.set_data_from_numpy(pixels)
        found = client.infer("tiny_engine", [raw])
        np.testing.assert_allclose(found.as_numpy("logits"), classifier.run(pixels)["logits"], atol=1e-4)
        with pytest.raises(http.InferenceServerException, match="there is no model 'none'"):
            client.infer("none", [raw])
    finally:
        client.close()
