"""Temperature and thresholds: fitted on logits whose truth is known, and through the command."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.card import card_path, read_card
from p4q_edge.runtime.artifacts.head import Calibration, Head
from p4q_edge.runtime.artifacts.head_store import add_head, find_head
from p4q_edge.runtime.classification.predictions import Prediction
from p4q_edge.runtime.classification.score_calibration import Fit, FitOptions, fit, fit_score_temperature
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
    assert fitted.after.ece < 0.03
    if temperature != 1.0:
        assert fitted.before.ece > 0.1


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_true_temperature_of_independent_classes_is_found(temperature: float) -> None:
    generator = np.random.default_rng(0)
    true_logits = generator.normal(0, 2, (20_000, 1))
    two = np.concatenate([true_logits, -true_logits], axis=1)
    labels = (generator.random(20_000) > 1 / (1 + np.exp(-true_logits[:, 0]))).astype(np.int64)
    assert fit_score_temperature(two * temperature, labels, activation="sigmoid") == pytest.approx(
        temperature, rel=0.08
    )


def test_the_temperature_stays_in_its_range() -> None:
    right, labels = np.eye(4) * 5 - 2.5, np.arange(4)
    assert fit_score_temperature(right, labels, activation="sigmoid") == 1e-3
    for activation in ("softmax", "sigmoid"):
        assert fit_score_temperature(-right, labels, activation=activation) == 1e3


def test_answers_without_an_error_are_not_taken_for_certain() -> None:
    # Two classes 6 logits apart, 9 times right and once, counted in addition, wrong: T with sigmoid(6 / T) = 9 / 10.
    logits, labels = np.tile([[3.0, -3.0]], (9, 1)), np.zeros(9, np.int64)
    assert fit_score_temperature(logits, labels, activation="softmax") == pytest.approx(6 / np.log(9))


def test_accepted_answers_come_to_the_wanted_accuracy() -> None:
    logits, labels = sample(1.0)
    plain = (logits.argmax(axis=1) == labels).mean()
    for accuracy in (0.75, 0.8):
        fitted = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=accuracy))
        assert fitted.after.accepted_accuracy == pytest.approx(accuracy, abs=0.02)
        assert fitted.before.accepted_accuracy == pytest.approx(plain)
        assert (fitted.before.unknown, fitted.accuracy) == (0.0, pytest.approx(plain))
        assert 0 < fitted.after.unknown <= 0.5
    lax = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=0.1))
    assert (lax.calibration.threshold, lax.after.unknown, lax.refused) == (0.0, 0.0, ())


def test_thresholds_that_make_most_answers_unknown_are_not_taken() -> None:
    logits, labels = sample(1.0)
    fitted = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=0.99))
    assert fitted.calibration.threshold == 0.0
    assert "of the answers would become unknown, more than --max-unknown 0.5" in fitted.refused[-1]
    wide = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=0.99, max_unknown=1.0))
    assert wide.calibration.threshold > 0.9
    assert wide.after.unknown > 0.5


def test_an_accuracy_out_of_reach_changes_nothing() -> None:
    logits = np.tile([[5.0, 0.0]], (20, 1))
    fitted = fit(logits, np.array([0, 1] * 10), head=head_of(2))
    assert fitted.calibration.threshold == 0.0
    assert "thresholds: 100.0% of the answers would become unknown" in fitted.refused[-1]


@given(seed=st.integers(0, 200), own=st.floats(0.2, 5), n=st.integers(12, 60))
def test_what_is_taken_is_never_worse(seed: int, own: float, n: int) -> None:
    logits, labels = sample(1.5, n=n, seed=seed)
    head = dataclasses.replace(head_of(4), calibration=Calibration(temperature=own))
    if len(set(labels.tolist())) < 2:
        return
    fitted = fit(logits, labels, head=head)
    assert fitted.after.ece <= fitted.before.ece
    assert fitted.after.unknown <= 0.5
    assert min(fitted.after.accepted_accuracy, 0.95) >= min(fitted.before.accepted_accuracy, 0.95)
    if fitted.calibration == head.calibration:
        assert fitted.after == fitted.before


def test_a_temperature_that_is_worse_on_other_images_is_named_and_not_taken() -> None:
    head = dataclasses.replace(head_of(4), calibration=Calibration(temperature=1.0))
    worse = [fit(*sample(1.0, n=16, seed=seed), head=head) for seed in range(12)]
    refused = [fitted for fitted in worse if any(reason.startswith("temperature") for reason in fitted.refused)]
    assert refused
    for fitted in refused:
        assert fitted.calibration.temperature == 1.0
        assert re.search(r"temperature [\d.e+-]+: the error would go 0\.\d+ -> 0\.\d+", fitted.refused[0])


def test_thresholds_are_judged_on_images_that_they_were_not_fitted_on() -> None:
    # Scores without any meaning: fitted and judged on the same images a threshold looks useful.
    generator = np.random.default_rng(5)
    logits, labels = generator.normal(0, 1, (60, 4)), generator.integers(0, 4, 60)
    fitted = fit(logits, labels, head=head_of(4), options=FitOptions(accuracy=0.5, max_unknown=1.0))
    assert fitted.after.accepted_accuracy < 0.5


def test_images_of_unknown_classes_decide_the_threshold() -> None:
    labels = np.arange(200) % 4
    known = np.eye(4)[labels] * 6 + np.random.default_rng(0).normal(0, 0.3, (200, 4))
    unknown = np.random.default_rng(1).normal(0, 0.3, (100, 4))
    known[:5] = unknown[:5]
    fitted = fit(known, labels, head=head_of(4), unknown=unknown)
    assert fitted.before.unknown_rejected == 0.0
    assert fitted.after.unknown_rejected is not None
    assert fitted.after.unknown_rejected > 0.95
    assert fitted.after.unknown == pytest.approx(5 / 200, abs=0.011)
    assert (fitted.samples, fitted.unknown_samples) == (200, 100)


def test_classes_with_enough_answers_get_thresholds_of_their_own() -> None:
    logits, labels = sample(1.0, n=600)
    logits = np.concatenate([logits, np.array([[0.0, 0, 0, 0, 9.0]])[:, :4]])
    labels = np.concatenate([labels, [0]])
    wide = np.concatenate([logits, np.full((601, 1), -9.0)], axis=1)
    fitted = fit(wide, labels, head=head_of(5), options=FitOptions(per_class=True, max_unknown=1))
    assert set(fitted.calibration.class_thresholds) == {"c0", "c1", "c2", "c3"}
    assert fitted.after.accepted_accuracy > 0.9


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_a_common_shift_of_the_logits_changes_nothing(seed: int, shift: float) -> None:
    logits, labels = sample(2.0, n=40, seed=seed)
    one = fit_score_temperature(logits, labels, activation="softmax")
    assert fit_score_temperature(logits + shift, labels, activation="softmax") == pytest.approx(one, rel=1e-4)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 10 images of two or more classes"):
        fit(np.eye(4), np.arange(4), head=head_of(4))
    with pytest.raises(InputError, match="two or more classes"):
        fit(np.tile(np.eye(4), (5, 1)), np.zeros(20, int), head=head_of(4))
    with pytest.raises(UsageError, match="must be above 0 and at most 1, got 2"):
        FitOptions(accuracy=2)
    with pytest.raises(UsageError, match="share of unknown answers must be between 0 and 1, got -1"):
        FitOptions(max_unknown=-1)


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


def test_the_command_writes_with_apply_alone(
    tiny_engine: Path, tiny_bundle: Path, labelled: Path, photo: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    add_head(tiny_engine, tiny_bundle, name="other")
    options = ["--unknown", photo, "--bundle", tiny_bundle]
    card = card_path(tiny_engine).read_bytes()
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, *options)
    assert code == 0
    assert card_path(tiny_engine).read_bytes() == card
    command = f"p4q-edge head calibrate {tiny_engine} {labelled} --unknown {photo} --bundle {tiny_bundle} --apply"
    assert f"nothing was written. Write it: {command}" in out
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, *options, "--apply", "--json")
    document = json.loads(out)
    assert (document["head"], document["samples"], document["unknown_samples"]) == ("built-in", 24, 1)
    assert (document["applied"], document["after"]["ece"] < document["before"]["ece"]) == (True, True)
    assert read_card(tiny_engine).calibration.temperature == document["calibration"]["temperature"] != 1.0
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, "--name", "other", "--per-class", "--apply")
    assert code == 0
    assert "n = 24" in out
    assert f"written. Undo it: p4q-edge head reset {tiny_engine} other" in out
    assert find_head(tiny_engine, "other").calibration.temperature == pytest.approx(
        document["calibration"]["temperature"], rel=1e-3
    )
    with ZeroShotClassifier(tiny_engine) as classifier:
        prediction = classifier.classify(photo)
        assert isinstance(prediction, Prediction)
        assert prediction.known is (prediction.score >= document["calibration"]["threshold"])
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, "--unknown", photo)
    assert "rejected of 1 unknown" in out


def test_calibrating_twice_ends_at_the_same(
    tiny_engine: Path, labelled: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    assert run("head", "calibrate", tiny_engine, labelled, "--apply")[0] == 0
    card = card_path(tiny_engine).read_bytes()
    code, out, _ = run("head", "calibrate", tiny_engine, labelled, "--apply")
    assert code == 0
    assert "nothing better was found; the head stays as it is" in out
    assert card_path(tiny_engine).read_bytes() == card


class Terminal(io.StringIO):
    """A stdin with somebody behind it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "written"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_terminal_is_asked(
    tiny_engine: Path,
    labelled: Path,
    answer: str,
    written: bool,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    code, out, err = run("head", "calibrate", tiny_engine, labelled, "--apply")
    assert code == 0
    assert "Write this calibration to the head built-in? [y/N]" in err
    assert (read_card(tiny_engine).calibration.temperature != 1.0) is written
    assert out.rstrip().endswith("nothing was written") is not written
    # Asked once, shown once.
    assert out.count("calibration error (ECE)") == 1


@pytest.mark.parametrize("name", [None, "other"])
def test_reset_gives_the_first_calibration_again(
    tiny_engine: Path,
    tiny_bundle: Path,
    labelled: Path,
    name: str | None,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    add_head(tiny_engine, tiny_bundle, name="other")
    named = [] if name is None else ["--name", name]
    assert run("head", "calibrate", tiny_engine, labelled, *named, "--apply")[0] == 0
    code, out, _ = run("head", "reset", tiny_engine, *named, "--json")
    document = json.loads(out)
    assert (code, document["head"], document["before"]["temperature"] != 1.0) == (0, name or "built-in", True)
    head = read_card(tiny_engine) if name is None else find_head(tiny_engine, name)
    assert head.calibration == Calibration()
    assert document["calibration"] == {
        "activation": "softmax",
        "temperature": 1.0,
        "threshold": 0.0,
        "class_thresholds": {},
    }


def test_a_fit_is_a_document() -> None:
    fitted = fit(*sample(1.0, n=50), head=head_of(4))
    assert isinstance(fitted, Fit)
    assert fitted.after.unknown_rejected is None
