"""Temperature and thresholds: fitted on logits whose truth is known, and through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.artifacts.head import Calibration, Head
from p4q_edge.runtime.artifacts.head_store import add_head, find_head
from p4q_edge.runtime.classification.predictions import Prediction
from p4q_edge.runtime.classification.score_calibration import Fit, FitOptions, fit, fit_temperature
from p4q_edge.runtime.errors import InputError, UsageError


def head_of(classes: int, activation: str = "softmax") -> Head:
    return Head(
        class_names=tuple(f"c{index}" for index in range(classes)),
        text_embedding=np.eye(classes, dtype=np.float32),
        logit_scale=1.0,
        calibration=Calibration(activation=activation),  # type: ignore[arg-type]
    )


def sample(temperature: float, *, n: int = 4000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose softmax at this temperature is the true chance of the labels."""
    generator = np.random.default_rng(seed)
    true_logits = generator.normal(0, 2, (n, classes))
    chances = np.exp(true_logits) / np.exp(true_logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(classes, p=row) for row in chances])
    return true_logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_true_temperature_is_found_and_lowers_the_error(temperature: float) -> None:
    logits, labels = sample(temperature)
    fitted = fit(logits, labels, head=head_of(4))
    assert fitted.calibration.temperature == pytest.approx(temperature, rel=0.08)
    assert fitted.ece_after < 0.03
    if temperature != 1.0:
        assert fitted.ece_before > 0.1


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_true_temperature_of_independent_classes_is_found(temperature: float) -> None:
    generator = np.random.default_rng(0)
    true_logits = generator.normal(0, 2, (20_000, 1))
    two = np.concatenate([true_logits, -true_logits], axis=1)
    labels = (generator.random(20_000) > 1 / (1 + np.exp(-true_logits[:, 0]))).astype(np.int64)
    assert fit_temperature(two * temperature, labels, activation="sigmoid") == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_temperature_stays_in_its_range(activation: str) -> None:
    right, labels = np.eye(4) * 5 - 2.5, np.arange(4)
    assert fit_temperature(right, labels, activation=activation) == 1e-3
    assert fit_temperature(-right, labels, activation=activation) == 1e3


def test_accepted_answers_reach_the_accuracy() -> None:
    logits, labels = sample(1.0)
    for accuracy in (0.7, 0.9, 0.99):
        fitted = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=accuracy))
        assert fitted.accepted_accuracy >= accuracy
        assert 0 < fitted.accepted < 1
    lax = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=0.1))
    assert (lax.calibration.threshold, lax.accepted) == (0.0, 1.0)


def test_an_accuracy_out_of_reach_rejects_everything(caplog: pytest.LogCaptureFixture) -> None:
    logits = np.tile([[5.0, 0.0]], (20, 1))
    labels = np.array([0, 1] * 10)
    with caplog.at_level("WARNING", logger="p4q_edge"):
        fitted = fit(logits, labels, head=head_of(2))
    assert (fitted.calibration.threshold, fitted.accepted, fitted.accepted_accuracy) == (1.0, 0.0, 0.0)
    assert "no threshold reaches an accuracy of 0.950" in caplog.text


def test_images_of_unknown_classes_decide_the_threshold() -> None:
    labels = np.arange(200) % 4
    known = np.eye(4)[labels] * 6 + np.random.default_rng(0).normal(0, 0.3, (200, 4))
    unknown = np.random.default_rng(1).normal(0, 0.3, (100, 4))
    known[:5] = unknown[:5]
    fitted = fit(known, labels, head=head_of(4), unknown=unknown)
    assert fitted.unknown_rejected == 1.0
    assert fitted.accepted == pytest.approx(195 / 200)
    assert (fitted.samples, fitted.unknown_samples) == (200, 100)


def test_classes_with_enough_answers_get_thresholds_of_their_own() -> None:
    logits, labels = sample(1.0, n=600)
    logits = np.concatenate([logits, np.array([[0.0, 0, 0, 0, 9.0]])[:, :4]])
    labels = np.concatenate([labels, [0]])
    wide = np.concatenate([logits, np.full((601, 1), -9.0)], axis=1)
    fitted = fit(wide, labels, head=head_of(5), options=FitOptions(per_class=True))
    assert set(fitted.calibration.class_thresholds) == {"c0", "c1", "c2", "c3"}
    assert fitted.accepted_accuracy >= 0.95


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_a_common_shift_of_the_logits_changes_nothing(seed: int, shift: float) -> None:
    logits, labels = sample(2.0, n=40, seed=seed)
    one = fit_temperature(logits, labels, activation="softmax")
    assert fit_temperature(logits + shift, labels, activation="softmax") == pytest.approx(one, rel=1e-4)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 10 images of two or more classes"):
        fit(np.eye(4), np.arange(4), head=head_of(4))
    with pytest.raises(InputError, match="two or more classes"):
        fit(np.tile(np.eye(4), (5, 1)), np.zeros(20, int), head=head_of(4))
    with pytest.raises(UsageError, match="must be between 0 and 1, got 2"):
        FitOptions(accuracy=2)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Eight random images a class."""
    root = tmp_path / "labelled"
    generator = np.random.default_rng(1)
    for index in range(24):
        folder = root / ("circle", "square", "triangle")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def test_the_command_writes_the_card_and_the_head(
    tiny_engine: Path, tiny_bundle: Path, labelled: Path, photo: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    add_head(tiny_engine, tiny_bundle, name="other")
    options = ["--accuracy", 0.3, "--unknown", photo, "--bundle", tiny_bundle, "--json"]
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, *options)
    assert code == 0
    document = json.loads(out)
    assert (document["head"], document["samples"], document["unknown_samples"]) == ("built-in", 24, 1)
    assert read_card(tiny_engine).calibration.temperature == document["calibration"]["temperature"] != 1.0
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, "--name", "other", "--per-class")
    assert code == 0
    assert "cross-fitted, n = 24" in out
    assert find_head(tiny_engine, "other").calibration.temperature == pytest.approx(
        document["calibration"]["temperature"], rel=1e-3
    )
    with ZeroShotClassifier(tiny_engine) as classifier:
        prediction = classifier.classify(photo)
        assert isinstance(prediction, Prediction)
        assert prediction.known is (prediction.score >= document["calibration"]["threshold"])
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, "--unknown", photo)
    assert "of the unknown (n = 1)" in out


def test_a_fit_is_a_document() -> None:
    fitted = fit(*sample(1.0, n=50), head=head_of(4))
    assert isinstance(fitted, Fit)
    assert fitted.unknown_rejected is None
