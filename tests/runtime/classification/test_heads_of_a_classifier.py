"""Heads, thresholds, probabilities and threads over one classifier."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts import head_store
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.artifacts.head import Calibration, Head
from p4q_edge.runtime.classification.predictions import Prediction, Ranking, probabilities
from p4q_edge.runtime.errors import ArtifactError, InputError, UsageError


def head_of(bundle: Path, **changes: object) -> Head:
    return dataclasses.replace(read_bundle(bundle).head(), **changes)  # type: ignore[arg-type]


def test_a_stored_head_that_is_removed_while_heads_are_read_is_none_of_them(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, damaged = tmp_path / "gone.safetensors", tmp_path / "damaged.safetensors"
    monkeypatch.setattr(head_store, "stored_heads", lambda engine: {"gone": gone})
    with ZeroShotClassifier(tiny_engine) as classifier:
        assert classifier.heads == ("built-in",)
    damaged.write_bytes(b"no head")
    monkeypatch.setattr(head_store, "stored_heads", lambda engine: {"gone": gone, "damaged": damaged})
    with pytest.raises(ArtifactError):
        ZeroShotClassifier(tiny_engine)


def test_a_head_that_is_a_link_to_nowhere_is_told_of(tiny_engine: Path) -> None:
    folder = head_store.heads_folder(tiny_engine)
    folder.mkdir()
    (folder / "one.safetensors").symlink_to("nowhere")
    with pytest.raises(InputError, match="one.safetensors"):
        ZeroShotClassifier(tiny_engine)


@pytest.mark.parametrize("name", ["built-in", "a b", "\udcff"])
def test_a_file_beside_the_heads_cannot_hide_the_engines_own(tiny_engine: Path, tiny_bundle: Path, name: str) -> None:
    folder = head_store.heads_folder(tiny_engine)
    folder.mkdir()
    (folder / f"{name}.safetensors").write_bytes(head_of(tiny_bundle).to_bytes())
    with pytest.raises(
        UsageError, match="holds a file that is no head of this engine: .* cannot be the name of a head"
    ):
        ZeroShotClassifier(tiny_engine)


def test_heads_are_swapped_over_one_engine(
    tiny_engine: Path, tiny_bundle: Path, tmp_path: Path, photo: Path, folder: Path
) -> None:
    same, renamed = tmp_path / "same.safetensors", tmp_path / "renamed.safetensors"
    same.write_bytes(read_bundle(tiny_bundle).read(bundles.HEAD))
    renamed.write_bytes(head_of(tiny_bundle, class_names=("x", "y", "z")).to_bytes())
    with ZeroShotClassifier(tiny_engine) as folded, ZeroShotClassifier(tiny_engine, heads=[same, renamed]) as other:
        assert other.heads == ("built-in", "same", "renamed")
        assert other.active_head == "same"
        cosines = (folded.embed(folder) * other.embed(folder)).sum(axis=1)
        assert cosines.min() > 1 - 1e-3
        expected = folded.classify(photo)
        got = other.classify(photo)
        assert isinstance(expected, Prediction)
        assert isinstance(got, Prediction)
        np.testing.assert_allclose([s for _, s in got.topk], [s for _, s in expected.topk], atol=1e-4)
        other.use_head("renamed")
        assert other.class_names == ("x", "y", "z")
        answer = other.classify(photo)
        assert isinstance(answer, Prediction)
        assert answer.label == "xyz"[expected.index]
        other.use_head("built-in")
        assert other.classify(photo) == expected
        with pytest.raises(UsageError, match="no head is named 'q'; there are built-in, same, renamed"):
            other.use_head("q")


def test_heads_are_given_by_name_or_in_one_file(tiny_engine: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(head_of(tiny_bundle).to_bytes())
    assert ZeroShotClassifier(tiny_engine, heads=path).active_head == "one"
    assert ZeroShotClassifier(tiny_engine, heads={"night": head_of(tiny_bundle)}).active_head == "night"
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b" / "one.safetensors"
    twin.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="two heads are named 'one'"):
        ZeroShotClassifier(tiny_engine, heads=[path, twin])
    with pytest.raises(UsageError, match="a head cannot be named 'built-in'"):
        ZeroShotClassifier(tiny_engine, heads={"built-in": head_of(tiny_bundle)})


def test_a_head_of_another_model_is_refused(tiny_engine: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ArtifactError, match="head a was made for another checkpoint"):
        ZeroShotClassifier(tiny_engine, heads={"a": head_of(tiny_bundle, weights_sha256="f" * 64)})


def test_thresholds_reject(tiny_engine: Path, tiny_bundle: Path, photo: Path) -> None:
    with ZeroShotClassifier(tiny_engine) as classifier:
        plain = classifier.classify(photo)
    assert isinstance(plain, Prediction)
    assert plain.known
    with ZeroShotClassifier(tiny_engine, threshold=1.0) as strict:
        rejected = strict.classify(photo)
    assert isinstance(rejected, Prediction)
    assert (rejected.known, rejected.accepted, rejected.topk) == (False, (), plain.topk)
    calibration = Calibration(threshold=0.0, class_thresholds={plain.label: 1.0})
    head = head_of(tiny_bundle, calibration=calibration)
    with ZeroShotClassifier(tiny_engine, heads={"fitted": head}) as fitted:
        assert not fitted.classify(photo).known  # type: ignore[union-attr]
    with ZeroShotClassifier(tiny_engine, heads={"fitted": head}, threshold=0.1) as loose:
        assert loose.classify(photo).known  # type: ignore[union-attr]


def test_the_calibration_of_the_card_applies_to_the_folded_head(tiny_engine: Path, photo: Path) -> None:
    with ZeroShotClassifier(tiny_engine) as plain:
        sharp = plain.classify(photo)
    card = msgspec.structs.replace(read_card(tiny_engine), calibration=Calibration(temperature=50.0, threshold=0.9))
    write_card(tiny_engine, card, force=True)
    with ZeroShotClassifier(tiny_engine) as warm:
        soft = warm.classify(photo)
    assert isinstance(sharp, Prediction)
    assert isinstance(soft, Prediction)
    assert soft.label == sharp.label
    assert soft.score < sharp.score
    assert not soft.known


def test_probabilities() -> None:
    logits = np.float32([[1, 2, 3], [1000, 0, -1000]])
    soft = probabilities(logits, Calibration(temperature=2.0))
    np.testing.assert_allclose(soft[0], np.exp([0.5, 1, 1.5]) / np.exp([0.5, 1, 1.5]).sum())
    np.testing.assert_allclose(soft[1], [1, 0, 0], atol=1e-12)
    several = probabilities(logits, Calibration(activation="sigmoid"))
    np.testing.assert_allclose(several[0], 1 / (1 + np.exp([-1.0, -2, -3])))
    np.testing.assert_allclose(several[1], [1, 0.5, 0])


def test_a_multi_label_answer_lists_all_accepted_classes() -> None:
    calibration = Calibration(activation="sigmoid", threshold=0.5, class_thresholds={"b": 0.95})
    ranking = Ranking(class_names=("a", "b", "c", "d"), calibration=calibration, threshold=None, top_k=4)
    answer = ranking.predict(np.array([0.6, 0.9, 0.7, 0.1]), source=None)
    assert (answer.label, answer.known, answer.accepted) == ("b", False, ("c", "a"))


def test_threads_share_one_classifier(classifier: ZeroShotClassifier, folder: Path) -> None:
    files = sorted(str(path) for path in folder.rglob("*.png"))
    expected = {path: classifier.classify(path) for path in files}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(classifier.classify, files * 20))
    assert answers == [expected[path] for path in files * 20]


def _classify_in_child(classifier: ZeroShotClassifier, image: Image.Image, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    try:
        classifier.classify(image)
    except UsageError as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_detected_and_explained(classifier: ZeroShotClassifier, picture: Image.Image) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_classify_in_child, args=(classifier, picture, answers))
    child.start()
    message = answers.get(timeout=60)
    child.join()
    assert f"was loaded in process {os.getpid()} and is used in its fork {child.pid}" in message
    assert "start processes with 'spawn'" in message


def test_another_process_number_means_a_fork(
    classifier: ZeroShotClassifier, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_in = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with pytest.raises(UsageError, match=f"was loaded in process {loaded_in} and is used in its fork 7"):
        classifier.classify(picture)
