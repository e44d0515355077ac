"""Name what images show: classifier, predictions, calibrated scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.classification.classifier import RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.classification.predictions import Failure, Prediction, probabilities
    from p4q_edge.runtime.classification.score_calibration import FitOptions, Request, calibrate

__all__ = [
    "Failure",
    "FitOptions",
    "Prediction",
    "Request",
    "RuntimeOptions",
    "ZeroShotClassifier",
    "calibrate",
    "probabilities",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "classifier": (
                "RuntimeOptions",
                "ZeroShotClassifier",
            ),
            "predictions": (
                "Failure",
                "Prediction",
                "probabilities",
            ),
            "score_calibration": (
                "FitOptions",
                "Request",
                "calibrate",
            ),
        },
    )
