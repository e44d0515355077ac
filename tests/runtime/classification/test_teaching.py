"""`ZeroShotClassifier.teach` on the tiny engine: pictures of one colour each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts import Head, base_head, read_bundle, read_card, write_card
from p4q_edge.runtime.classification.predictions import Prediction
from p4q_edge.runtime.errors import ArtifactError, InputError, UsageError

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


def pictures(color: str, count: int, *, seed: int = 0) -> list[Image.Image]:
    """Pictures of one colour with noise."""
    generator = np.random.default_rng([seed, *COLORS[color]])
    noise = generator.integers(-25, 25, (count, 16, 16, 3))
    return [Image.fromarray(np.clip(noise[i] + COLORS[color], 0, 255).astype(np.uint8)) for i in range(count)]


def lesson(count: int = 5) -> dict[str, list[Image.Image]]:
    return {color: pictures(color, count) for color in COLORS}


def labels(classifier: ZeroShotClassifier, images: list[Image.Image]) -> list[str]:
    answers = classifier.classify(images)
    assert isinstance(answers, list)
    return [answer.label for answer in answers]


def test_a_taught_head_names_new_pictures(classifier: ZeroShotClassifier) -> None:
    head = classifier.teach(lesson(), name="colors")
    assert head.class_names == ("red", "green", "blue")
    assert classifier.active_head == "built-in"
    classifier.use_head("colors")
    for color in COLORS:
        assert labels(classifier, pictures(color, 4, seed=1)) == [color] * 4


def test_the_report_says_what_is_known(classifier: ZeroShotClassifier) -> None:
    report = classifier.lesson(lesson()).report
    assert report.photographs == {"red": 5, "green": 5, "blue": 5}
    assert (report.known, report.added, report.base_accuracy, report.repeated) == ((), (), None, 0)
    assert (report.folds, report.held_out, report.held_out_accuracy) == (4, 15, 1.0)
    assert report.calibration is not None
    # Right each time, yet not certain: the closest answer counts as wrong once.
    assert report.calibration.calibration.temperature > 1e-2


def test_the_same_photographs_teach_the_same_head(classifier: ZeroShotClassifier) -> None:
    assert classifier.teach(lesson()).to_bytes() == classifier.teach(lesson()).to_bytes()


def test_a_class_known_by_name_starts_at_its_text_embedding(classifier: ZeroShotClassifier, tiny_engine: Path) -> None:
    known = classifier.lesson({"circle": pictures("red", 1), "triangle": pictures("blue", 1)})
    assert (known.report.known, known.report.folds) == (("circle", "triangle"), 0)
    assert known.report.held_out_accuracy is None
    assert known.report.base_accuracy in (0.0, 0.5, 1.0)
    base = base_head(tiny_engine)
    nearest = (known.head.text_embedding @ base.text_embedding.T).argmax(axis=1)
    assert nearest.tolist() == [base.class_names.index("circle"), base.class_names.index("triangle")]
    assert known.head.adapter is not None
    # Learned with other text embeddings, the adapter has no meaning for classes that these do not name.
    assert classifier.teach(lesson()).adapter is None


def test_adding_a_class_leaves_the_logits_of_the_others(classifier: ZeroShotClassifier, tiny_engine: Path) -> None:
    base = base_head(tiny_engine)
    taught = classifier.lesson({"blue": pictures("blue", 6)}, add=True)
    head = taught.head
    assert (head.class_names, taught.report.added) == ((*base.class_names, "blue"), ("blue",))
    assert (head.calibration, head.logit_scale, head.adapter is None) == (base.calibration, base.logit_scale, False)
    features = np.random.default_rng(0).normal(size=(50, base.embedding_dim)).astype(np.float32)
    # Matrices of another width may be multiplied in another order: the last bits of logits up to 10 or so.
    np.testing.assert_allclose(head.apply(features)[0][:, :3], base.apply(features)[0], atol=1e-5)
    classifier._heads["more"] = head
    classifier.use_head("more")
    assert labels(classifier, pictures("blue", 6, seed=2)) == ["blue"] * 6


def test_an_added_class_does_not_take_away_the_golden_samples(
    classifier: ZeroShotClassifier, tiny_engine: Path
) -> None:
    golden = read_card(tiny_engine).golden_samples()
    base, head = base_head(tiny_engine), classifier.teach({"blue": pictures("blue", 6)}, add=True)
    np.testing.assert_array_equal(
        head.apply(golden.features)[0].argmax(axis=1), base.apply(golden.features)[0].argmax(axis=1)
    )


def test_a_taught_head_is_a_base_again(classifier: ZeroShotClassifier) -> None:
    classifier.teach({"red": pictures("red", 4), "green": pictures("green", 4)}, name="two")
    three = classifier.teach({"blue": pictures("blue", 4)}, base="two", add=True)
    assert three.class_names == ("red", "green", "blue")
    again = classifier.lesson({"red": pictures("red", 1), "blue": pictures("blue", 1)}, base=three)
    assert again.report.known == ("red", "blue")


def test_images_of_no_class_decide_the_threshold(classifier: ZeroShotClassifier) -> None:
    strangers = [Image.fromarray(np.full((16, 16, 3), grey, np.uint8)) for grey in range(0, 250, 20)]
    taught = classifier.lesson(lesson(8), unknown=strangers)
    assert taught.report.calibration is not None
    assert taught.report.calibration.unknown_samples == len(strangers)
    assert taught.head.calibration.threshold > 0


def test_the_same_picture_twice_counts_once(classifier: ZeroShotClassifier) -> None:
    twice = lesson(3) | {"red": pictures("red", 3) + pictures("red", 2)}
    report = classifier.lesson(twice).report
    assert (report.photographs["red"], report.repeated) == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"red": ["one"]}, "class 'red' has 1 photograph; expected at least 2, as head built-in does not know it by"),
        ({"red": []}, "class 'red' has 0 photographs; expected at least 2"),
        ({"circle": []}, "class 'circle' has 0 photographs; expected at least 1. Take some more"),
        ({"Blue ": ["one", "two"]}, "the class names 'blue' and 'Blue ' are one name. Put their photographs together"),
        ({" ": ["one", "two"]}, "' ' is no name of a class"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_an_image_is_read(
    classifier: ZeroShotClassifier, change: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        classifier.teach({color: ["none.png"] * 3 for color in COLORS} | change)


def test_too_few_or_no_new_classes_are_refused(classifier: ZeroShotClassifier) -> None:
    with pytest.raises(InputError, match=r"needs two classes or more to tell apart, got red\. .* --add CLASS"):
        classifier.teach({"red": pictures("red", 4)})
    with pytest.raises(InputError, match=r"needs two classes or more to tell apart, got none"):
        classifier.teach({})
    with pytest.raises(InputError, match=r"\(circle\) is one of head built-in already, so there is none to add"):
        classifier.teach({"circle": pictures("red", 4)}, add=True)
    with pytest.raises(UsageError, match="add=True keeps the thresholds of the base head"):
        classifier.teach({"red": pictures("red", 4)}, add=True, unknown=pictures("blue", 2))
    with pytest.raises(InputError, match="class 'red' has one photograph only, several times; expected at least 2"):
        classifier.teach(lesson() | {"red": pictures("red", 1) * 3})


def test_one_picture_in_two_classes_is_named(classifier: ZeroShotClassifier, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pictures("red", 1)[0].save(tmp_path / name)
    mixed = {"red": [tmp_path / "a.png", *pictures("red", 2)[1:]], "green": [tmp_path / "b.png", *pictures("green", 2)]}
    with pytest.raises(InputError, match=r"b\.png of class 'green' is the same picture as .*a\.png of class 'red'"):
        classifier.teach(mixed)


def test_all_photographs_that_cannot_be_read_are_named(classifier: ZeroShotClassifier, tmp_path: Path) -> None:
    broken = [tmp_path / f"{index}.jpg" for index in range(7)]
    for path in broken:
        path.write_bytes(b"no picture")
    given = lesson() | {"red": [*pictures("red", 2), *broken[:4]], "blue": [*pictures("blue", 2), *broken[4:]]}
    with pytest.raises(
        InputError, match=r"7 photographs cannot be read: .*0\.jpg.*4\.jpg.*; and 2 more\. Repair"
    ) as caught:
        classifier.teach(given)
    assert ".." not in str(caught.value).replace(str(tmp_path), "")


def test_few_photographs_leave_scores_as_they_are(
    classifier: ZeroShotClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    taught = classifier.lesson(lesson(2))
    assert taught.report.calibration is None
    assert taught.head.calibration.temperature == 1.0
    assert "6 photographs could be held out, fewer than 10: scores are not calibrated" in caplog.text


def test_a_card_without_the_rows_says_how_to_get_them(tiny_engine: Path, tiny_bundle: Path) -> None:
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), folded_head=""), force=True)
    with ZeroShotClassifier(tiny_engine) as classifier:
        with pytest.raises(ArtifactError, match=r"does not hold the rows of its built-in head: .*--base MODEL\.p4q"):
            classifier.teach(lesson())
        assert classifier.teach(lesson(), base=tiny_bundle).class_names == ("red", "green", "blue")
        with pytest.raises(UsageError, match="has no head 'day'; it has built-in"):
            classifier.teach(lesson(), base="day")


def test_a_base_of_another_model_is_refused(classifier: ZeroShotClassifier, head_of: Callable[..., Head]) -> None:
    with pytest.raises(ArtifactError, match="was made for another checkpoint"):
        classifier.teach(lesson(), base=head_of(weights_sha256="f" * 64))


def test_the_card_holds_the_head_of_the_bundle_under_its_own_calibration(tiny_engine: Path, tiny_bundle: Path) -> None:
    card, head = read_card(tiny_engine), read_bundle(tiny_bundle).head()
    assert card.head_rows().to_bytes() == head.to_bytes()
    other = msgspec.structs.replace(card.calibration, temperature=3.0)
    assert msgspec.structs.replace(card, calibration=other).head_rows().calibration.temperature == 3.0


@pytest.fixture
def head_of(tiny_bundle: Path) -> Callable[..., Head]:
    """Make the tiny bundle's head with changes."""
    return lambda **changes: dataclasses.replace(read_bundle(tiny_bundle).head(), **changes)


def test_predictions_of_a_taught_head_are_whole(classifier: ZeroShotClassifier) -> None:
    classifier.teach(lesson(), name="colors")
    classifier.use_head("colors")
    answer = classifier.classify(pictures("red", 1, seed=3)[0])
    assert isinstance(answer, Prediction)
    assert sum(score for _, score in answer.topk) == pytest.approx(1.0)
