"""Classification: every kind of input, batching, and what is refused."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import p4q_edge.runtime
from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
from p4q_edge.runtime.classification import predictions as results
from p4q_edge.runtime.classification import preparation
from p4q_edge.runtime.classification.predictions import Prediction
from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.errors import InputError, QualityGateError, UsageError
from p4q_edge.runtime.images.preprocessing import preprocess


def test_all_kinds_of_one_image_agree(classifier: ZeroShotClassifier, photo: Path, picture: Image.Image) -> None:
    expected = classifier.classify(picture)
    assert isinstance(expected, Prediction)
    array = np.asarray(picture)
    for image in (str(photo), photo, photo.read_bytes(), array):
        prediction = classifier.classify(image)
        assert isinstance(prediction, Prediction)
        assert prediction.topk == expected.topk
    bgr = classifier.classify(np.ascontiguousarray(array[:, :, ::-1]), color="bgr")
    assert isinstance(bgr, Prediction)
    assert bgr.topk == expected.topk
    other = classifier.classify(np.ascontiguousarray(array[:, :, ::-1]))
    assert isinstance(other, Prediction)
    assert other.topk != expected.topk


def test_a_prediction_is_that_of_the_engine(classifier: ZeroShotClassifier, photo: Path, picture: Image.Image) -> None:
    prediction = classifier.classify(photo)
    assert isinstance(prediction, Prediction)
    pixels = preprocess(picture, classifier.card.preprocess)[np.newaxis]
    logits = classifier._engine.run(pixels, ("logits",))["logits"][0].astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-scores)
    assert prediction.index == order[0]
    assert prediction.label == classifier.class_names[order[0]]
    assert [label for label, _ in prediction.topk] == [classifier.class_names[index] for index in order]
    np.testing.assert_allclose([score for _, score in prediction.topk], scores[order], rtol=1e-9)
    assert prediction.source == str(photo)
    assert prediction.known
    assert sum(score for _, score in prediction.topk) == pytest.approx(1.0)


def test_golden_images_get_the_classes_of_the_reference(classifier: ZeroShotClassifier) -> None:
    golden = classifier.card.golden_samples()
    arrays = [image.transpose(1, 2, 0) for image in golden.image]
    predictions = classifier.classify(arrays)
    assert isinstance(predictions, list)
    assert [prediction.index for prediction in predictions] == golden.logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(classifier.embed(arrays), golden.embedding, atol=1e-5)


def test_many_images_from_lists_generators_folders_and_globs_agree(
    classifier: ZeroShotClassifier, folder: Path
) -> None:
    files = sorted(str(path) for path in folder.rglob("*.png"))
    singly = [classifier.classify(path) for path in files]
    together = classifier.classify(files)
    assert isinstance(together, list)
    # Not exactly equal: kernels for one row and for several round differently.
    for one, of_many in zip(singly, together, strict=True):
        assert isinstance(one, Prediction)
        assert one.label == of_many.label
        assert one.score == pytest.approx(of_many.score, abs=1e-5)
    assert classifier.classify(path for path in files) == together
    assert classifier.classify(folder) == together
    assert classifier.classify(str(folder / "**" / "*.png")) == together
    assert classifier.classify([str(folder)]) == together
    assert [prediction.source for prediction in singly if isinstance(prediction, Prediction)] == files
    assert classifier.embed(folder).shape == (11, 16)
    np.testing.assert_allclose(np.linalg.norm(classifier.embed(folder), axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "decode_threads"), [(1, 1), (3, 2), (64, 4)])
def test_batches_and_decoding_threads_do_not_change_answers(
    tiny_engine: Path, folder: Path, batch_size: int, decode_threads: int
) -> None:
    options = RuntimeOptions(batch_size=batch_size, decode_threads=decode_threads)
    with ZeroShotClassifier(tiny_engine) as one, ZeroShotClassifier(tiny_engine, options=options) as other:
        np.testing.assert_allclose(one.embed(folder), other.embed(folder), atol=1e-6)
        assert [item.label for item in one.iterate(folder)] == [item.label for item in other.iterate(folder)]


def test_images_are_decoded_only_a_little_ahead(tiny_engine: Path, picture: Image.Image) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield picture

    with ZeroShotClassifier(tiny_engine, options=RuntimeOptions(batch_size=4)) as classifier:
        predictions = classifier.iterate(endless())
        next(predictions)
        assert taken <= 14
        predictions.close()  # type: ignore[attr-defined]


def test_the_next_images_are_decoded_while_the_engine_runs(
    tiny_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run of the engine but the last ones waits here for images of later batches."""
    decoded = threading.Semaphore(0)
    read = preparation.load_image

    def load(*args: object, **options: object) -> Image.Image:
        image = read(*args, **options)  # type: ignore[arg-type]
        decoded.release()
        return image

    monkeypatch.setattr(preparation, "load_image", load)
    with ZeroShotClassifier(tiny_engine, options=RuntimeOptions(batch_size=2, decode_threads=1)) as classifier:
        run = classifier._engine.run
        batches = []

        def waiting(image: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
            batches.append(len(image))
            ahead = min(11, 2 * len(batches) + 2) - waiting.seen  # type: ignore[attr-defined]
            for _ in range(ahead):
                assert decoded.acquire(timeout=30), "nothing was decoded while the engine ran"
            waiting.seen += ahead  # type: ignore[attr-defined]
            return run(image, outputs)

        waiting.seen = 0  # type: ignore[attr-defined]
        monkeypatch.setattr(classifier._engine, "run", waiting)
        assert len(list(classifier.iterate(folder))) == 11
    assert batches == [2, 2, 2, 2, 2, 1]


def test_nothing_in_gives_nothing_out(classifier: ZeroShotClassifier) -> None:
    assert classifier.classify([]) == []
    assert classifier.embed([]).shape == (0, 16)


def test_calls_have_the_shape_of_other_pipelines(classifier: ZeroShotClassifier, photo: Path) -> None:
    one = classifier(photo, top_k=2)
    many = classifier([photo], top_k=2)
    assert many == [one]
    assert [set(entry) for entry in one] == [{"label", "score"}] * 2
    assert json.loads(json.dumps(one)) == one


@pytest.mark.parametrize("top_k", [1, 2, 3, 50])
def test_top_k_is_bounded_by_the_classes(classifier: ZeroShotClassifier, photo: Path, top_k: int) -> None:
    prediction = classifier.classify(photo, top_k=top_k)
    assert isinstance(prediction, Prediction)
    assert len(prediction.topk) == min(3, top_k)


def test_images_that_cannot_be_used_are_named(classifier: ZeroShotClassifier, photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"broken\.png cannot be decoded as .* Save it again"):
        classifier.classify([photo, broken])
    with pytest.raises(InputError, match=r"absent\.png' does not exist"):
        classifier.classify(tmp_path / "absent.png")
    for impossible in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="' does not exist"):
            classifier.classify(impossible)
    with pytest.raises(InputError, match="empty holds no images; expected files ending in"):
        classifier.classify(empty)
    with pytest.raises(InputError, match=r"\*\.tif holds no images"):
        classifier.classify(str(tmp_path / "*.tif"))
    with pytest.raises(
        TypeError, match="expected a path, bytes, a file object, a PIL image, an array or a tensor; got int"
    ):
        classifier.classify([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be between 0 and 1, got 1\.5"),
        ({"threshold": float("nan")}, "threshold must be between 0 and 1, got nan"),
    ],
)
def test_wrong_arguments_are_refused(tiny_engine: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ZeroShotClassifier(tiny_engine, **arguments)  # type: ignore[arg-type]


def test_wrong_options_are_refused(classifier: ZeroShotClassifier, photo: Path) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        RuntimeOptions(batch_size=0)
    with pytest.raises(UsageError, match="top_k must be at least 1, got 0"):
        classifier.classify(photo, top_k=0)


def test_the_golden_check_can_be_left_out(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise QualityGateError("wrong values")

    monkeypatch.setattr("p4q_edge.runtime.classification.classifier.ensure_golden", refuse)
    with pytest.raises(QualityGateError):
        ZeroShotClassifier(tiny_engine)
    ZeroShotClassifier(tiny_engine, options=RuntimeOptions(check="never")).close()


def test_command_classify(
    tiny_engine: Path, folder: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["classify", str(tiny_engine), str(photo), str(folder), "--top-k", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert len(document["predictions"]) == 12
    assert document["predictions"][0]["source"] == str(photo)
    assert len(document["predictions"][0]["topk"]) == 2
    assert cli.main(["classify", str(tiny_engine), str(photo), "--threshold", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: unknown? ")
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(photo.read_bytes())}))
    assert cli.main(["classify", str(tiny_engine), "-"]) == 0
    assert capsys.readouterr().out.startswith("-: ")


def test_public_names_are_those_listed() -> None:
    assert p4q_edge.runtime.__all__ == sorted(p4q_edge.runtime.__all__)
    for name in p4q_edge.runtime.__all__:
        assert getattr(p4q_edge.runtime, name).__name__ == name
    assert set(p4q_edge.runtime.__all__) <= set(dir(p4q_edge.runtime))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        p4q_edge.runtime.nothing  # noqa: B018
    assert results.Prediction is p4q_edge.runtime.Prediction
