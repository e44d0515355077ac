"""Images of no class: figures by hand, and the engine's own thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from p4q_edge.runtime.artifacts import Calibration
from p4q_edge.runtime.evaluation.trials.unknown_images import called_unknown, unknown_report

NAMES = ("cup", "plate")


def logits(*margins: float) -> np.ndarray:
    """Logits of the first class over the second."""
    return np.array([[margin, 0.0] for margin in margins])


def test_figures_of_few_images_by_hand() -> None:
    known, unknown = logits(4, 3, -3, 0.5), logits(0.1, 1, -0.2, 2)
    report = unknown_report(
        {"float": known, "engine": known},
        {"float": unknown, "engine": unknown},
        class_names=NAMES,
        calibration=Calibration(threshold=0.9),
        source="others",
    )
    assert (report.n, report.labelled, report.threshold, report.source, report.rejects) == (4, 4, 0.9, "others", True)
    assert [stage.name for stage in report.stages] == ["float", "engine"]
    last = report.stages[-1]
    # Probabilities of the best class follow |margin|: 14 of 16 pairs are in order.
    assert last.auroc.value == 14 / 16
    assert last.rejected.value == 1.0  # the highest, of margin 2, is 0.88
    assert last.wrongly_rejected.value == 0.25
    assert last.accepted_at_95.value == 0.5  # those of margins 1 and 2 lie above the lowest labelled one, 0.5


def test_a_class_may_have_its_own_threshold() -> None:
    report = unknown_report(
        {"engine": logits(3, -3)},
        {"engine": logits(3, -3)},
        class_names=NAMES,
        calibration=Calibration(threshold=0.5, class_thresholds={"plate": 0.99}),
        source="x",
    )
    assert report.stages[0].rejected.value == 0.5  # as plate alone
    assert report.stages[0].auroc.value == 0.5
    assert report.class_thresholds
    own = Calibration(threshold=0.5, class_thresholds={"plate": 0.99})
    assert called_unknown(logits(3, -3, -9, 0.1), class_names=NAMES, calibration=own) == (1,)


def test_temperature_and_independent_classes_count() -> None:
    rows = logits(2, 2)
    cool = Calibration(activation="sigmoid", temperature=10.0, threshold=0.6)
    report = unknown_report({"engine": rows}, {"engine": rows}, class_names=NAMES, calibration=cool, source="x")
    assert report.stages[0].rejected.value == 1.0  # sigmoid(0.2) = 0.55


def test_an_engine_without_threshold_rejects_nothing() -> None:
    rows = logits(2, 0.0)
    report = unknown_report(
        {"engine": rows}, {"engine": rows}, class_names=NAMES, calibration=Calibration(), source="x"
    )
    assert not report.rejects
    assert report.stages[0].rejected.value == pytest.approx(0.0)
