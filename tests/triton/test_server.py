"""The exported models in a real Triton server: answers, concurrency, damaged images, metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_server import REPOSITORY

from p4q_edge.runtime.classification import Prediction, ZeroShotClassifier

pytestmark = [pytest.mark.slow, pytest.mark.triton]
CLIENTS = 8
ENVIRONMENT = Path(os.environ.get("P4Q_TRITON", REPOSITORY / ".venv-triton"))


@pytest.fixture(scope="module")
def expected(engine: Path, photos: list[Path]) -> dict[str, list[Prediction]]:
    with ZeroShotClassifier(engine, heads=["night"]) as classifier:
        night = [classifier.classify(path) for path in photos]
        classifier.use_head("built-in")
        tiny = [classifier.classify(path) for path in photos]
    return {"tiny": tiny, "tiny-night": night}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def answers(server: Any, triton_python: Callable[..., Any], photos: list[Path]) -> dict[str, Any]:
    return {
        model: triton_python("client.py", server.http, server.grpc, model, CLIENTS, *photos)
        for model in ("tiny", "tiny-night")
    }


def assert_same(answer: dict[str, Any], row: int, prediction: Prediction) -> None:
    assert "error" not in answer, answer
    assert answer["label"][row] == [label for label, _ in prediction.topk]
    np.testing.assert_allclose(answer["score"][row], [score for _, score in prediction.topk], atol=1e-6)
    assert answer["index"][row][0] == prediction.index
    assert answer["known"][row] == [prediction.known]


@pytest.mark.parametrize("model", ["tiny", "tiny-night"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_those_of_the_classifier(
    answers: dict[str, Any], expected: dict[str, list[Prediction]], model: str, protocol: str
) -> None:
    found = answers[model][protocol]
    for row, prediction in enumerate(expected[model]):
        assert_same(found["one_by_one"][row], 0, prediction)
        assert_same(found["together"], row, prediction)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_damaged_image_is_an_error_of_its_request_alone(
    answers: dict[str, Any], expected: dict[str, list[Prediction]], protocol: str
) -> None:
    found = answers["tiny"][protocol]
    assert re.search(r"image 1 of 1: .*(truncated|broken|cannot|decoded|damaged)", found["damaged"]["error"])
    assert_same(found["after"], 0, expected["tiny"][0])


def test_eight_clients_at_once_get_their_own_answers(
    answers: dict[str, Any], expected: dict[str, list[Prediction]], photos: list[Path]
) -> None:
    concurrent = answers["tiny"]["concurrent"]
    assert len(concurrent) == CLIENTS * len(photos)
    assert sum(damaged for _, damaged, _ in concurrent) == len(photos) // 2
    for index, damaged, answer in concurrent:
        if damaged:
            assert "image 1 of 1" in answer["error"]
        else:
            assert_same(answer, 0, expected["tiny"][index])


def test_the_example_names_the_images(
    server: Any, packages: Path, expected: dict[str, list[Prediction]], photos: list[Path]
) -> None:
    script = REPOSITORY / "examples/08_triton/ask_triton.py"
    command = [str(ENVIRONMENT / "bin/python"), str(script), f"127.0.0.1:{server.http}", "tiny", *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [
        f"{path}  {best.label if best.known else 'unknown'}  {best.score:.1%}"
        for path, best in zip(photos, expected["tiny"], strict=True)
    ]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


@pytest.mark.usefixtures("answers")
def test_metrics_count_what_was_asked(server: Any) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = {
        kind: int(found[1])
        for kind in ("success", "failure")
        if (found := re.search(rf'nv_inference_request_{kind}{{model="tiny_decode",[^}}]*}} (\d+)', text))
    }
    assert counts["success"] > 0
    served = re.search(r'nv_inference_count\{model="tiny_engine",version="1"\} (\d+)', text)
    assert served is not None
    assert int(served[1]) >= 8 * 4


def test_the_server_tells_of_its_models(server: Any) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/models/tiny", timeout=10) as answer:
        document = json.load(answer)
    assert [(item["name"], item["datatype"], item["shape"]) for item in document["inputs"]] == [
        ("encoded", "BYTES", [-1, 1])
    ]
    assert {item["name"] for item in document["outputs"]} == {"label", "score", "index", "known"}
