"""Name what images show: classifier, predictions, calibrated scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.classification.classifier import ZeroShotClassifier
    from p4q_edge.runtime.classification.head_calibration import (
        Request,
        calibrate_head,
        reset_calibration,
        write_calibration,
    )
    from p4q_edge.runtime.classification.predictions import Failure, Prediction, Ranking, probabilities
    from p4q_edge.runtime.classification.preparation import RuntimeOptions
    from p4q_edge.runtime.classification.score_calibration import Fit, FitOptions, Scores
    from p4q_edge.runtime.classification.teaching import Taught, TeachReport

__all__ = [
    "Failure",
    "Fit",
    "FitOptions",
    "Prediction",
    "Ranking",
    "Request",
    "RuntimeOptions",
    "Scores",
    "Taught",
    "TeachReport",
    "ZeroShotClassifier",
    "calibrate_head",
    "probabilities",
    "reset_calibration",
    "write_calibration",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "classifier": ("ZeroShotClassifier",),
            "preparation": ("RuntimeOptions",),
            "predictions": (
                "Failure",
                "Prediction",
                "Ranking",
                "probabilities",
            ),
            "head_calibration": (
                "Request",
                "calibrate_head",
                "reset_calibration",
                "write_calibration",
            ),
            "score_calibration": (
                "Fit",
                "FitOptions",
                "Scores",
            ),
            "teaching": (
                "Taught",
                "TeachReport",
            ),
        },
    )
