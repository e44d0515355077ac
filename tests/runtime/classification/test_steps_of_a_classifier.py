"""The steps of a classification one by one, for programs that gather images of several callers into one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.classification.predictions import Prediction, Ranking, probabilities
from p4q_edge.runtime.errors import ArtifactError, InputError, UsageError


def test_the_steps_give_what_classify_gives(classifier: ZeroShotClassifier, photo: Path, picture: Image.Image) -> None:
    expected = classifier.classify(picture)
    assert isinstance(expected, Prediction)
    batch = classifier.prepare(photo.read_bytes())[np.newaxis]
    assert (batch.dtype, batch.shape[1:]) == (np.uint8, (3, *classifier.card.preprocess.size))
    logits, embedding = classifier.answer(batch)
    head = classifier.head()
    ranking = Ranking(class_names=head.class_names, calibration=head.calibration, threshold=None, top_k=5)
    assert ranking.predict(probabilities(logits, head.calibration)[0], source=None) == expected
    np.testing.assert_array_equal(embedding, classifier.embed(picture))
    raw = classifier.run(batch)
    assert set(raw) == {"logits", "embedding", "features"}
    np.testing.assert_array_equal(raw["logits"], logits)


def test_a_damaged_image_is_an_input_error(classifier: ZeroShotClassifier) -> None:
    with pytest.raises(InputError, match="an image|is not one of"):
        classifier.prepare(b"no image at all")


@pytest.mark.parametrize("options", [{"color": "BGR"}, {"on_error": "skip"}])
def test_a_choice_that_does_not_exist_is_refused(
    classifier: ZeroShotClassifier, photo: Path, options: dict[str, str]
) -> None:
    (key, value), *_ = options.items()
    for images in (photo, [photo, np.zeros((8, 8, 3), np.uint8)]):
        with pytest.raises(UsageError, match=f"{key}: expected 'r.*' or '.*', got '{value}'"):
            list(classifier.iterate(images, **options))  # type: ignore[call-overload]


def test_heads_are_kept_and_dropped_while_it_runs(
    classifier: ZeroShotClassifier, tiny_bundle: Path, photo: Path
) -> None:
    head = replace(read_bundle(tiny_bundle).head(), class_names=("x", "y", "z"))
    classifier.keep_head("letters", head)
    batch = classifier.prepare(photo)[np.newaxis]
    assert classifier.head("letters").class_names == ("x", "y", "z")
    assert classifier.active_head == "built-in"
    np.testing.assert_allclose(classifier.answer(batch, head="letters")[0], classifier.answer(batch)[0], atol=1e-3)
    classifier.use_head("letters")
    classifier.drop_head("letters")
    assert classifier.active_head == "built-in"
    with pytest.raises(UsageError, match="no head is named 'letters'"):
        classifier.answer(batch, head="letters")


def test_what_cannot_be_kept_or_dropped_is_refused(classifier: ZeroShotClassifier, tiny_bundle: Path) -> None:
    head = read_bundle(tiny_bundle).head()
    with pytest.raises(UsageError, match="cannot be the name of a head"):
        classifier.keep_head("built-in", head)
    with pytest.raises(ArtifactError, match="made for another checkpoint"):
        classifier.keep_head("other", replace(head, weights_sha256="f" * 64))
    with pytest.raises(UsageError, match="the built-in head is part of"):
        classifier.drop_head("built-in")
    assert classifier.heads == ("built-in",)
