"""The device runtime of P4Q Edge: build an engine from a bundle and classify images with it, without torch.

Public names are imported when they are first used, so that `p4q-edge --help` loads neither numpy nor an engine.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import (
        Bundle,
        Calibration,
        Card,
        GoldenResult,
        Head,
        OnnxRuntimeBuild,
        Precision,
        RtxBuild,
        RtxOptions,
        TensorRTBuild,
        TensorRTOptions,
        load_head,
        read_bundle,
        read_card,
    )
    from p4q_edge.runtime.builders import BuildOptions, build_engine
    from p4q_edge.runtime.classification import Failure, Prediction, RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.errors import (
        ArtifactError,
        CorruptArtifactError,
        EnvironmentNotAbleError,
        IncompatibleEngineError,
        InputError,
        P4QEdgeError,
        ProcessLostError,
        QualityGateError,
        UsageError,
    )
    from p4q_edge.runtime.hub import PushedBundle, PushOptions, download_bundle, push_bundle
    from p4q_edge.runtime.verification import selftest

__all__ = [
    "ArtifactError",
    "BuildOptions",
    "Bundle",
    "Calibration",
    "Card",
    "CorruptArtifactError",
    "EnvironmentNotAbleError",
    "Failure",
    "GoldenResult",
    "Head",
    "IncompatibleEngineError",
    "InputError",
    "OnnxRuntimeBuild",
    "P4QEdgeError",
    "Precision",
    "Prediction",
    "ProcessLostError",
    "PushOptions",
    "PushedBundle",
    "QualityGateError",
    "RtxBuild",
    "RtxOptions",
    "RuntimeOptions",
    "TensorRTBuild",
    "TensorRTOptions",
    "UsageError",
    "ZeroShotClassifier",
    "build_engine",
    "download_bundle",
    "load_head",
    "push_bundle",
    "read_bundle",
    "read_card",
    "selftest",
]

# ONNX Runtime reads this when its library is loaded, and otherwise keeps a device id and a database in the user's cache
# and looks up a host of its vendor. Every room of both distributions imports this module first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logging.getLogger("p4q_edge").addHandler(logging.NullHandler())

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "artifacts": (
                *("Bundle", "Calibration", "Card", "GoldenResult", "Head", "OnnxRuntimeBuild", "Precision"),
                *(
                    "RtxBuild",
                    "RtxOptions",
                    "TensorRTBuild",
                    "TensorRTOptions",
                    "load_head",
                    "read_bundle",
                    "read_card",
                ),
            ),
            "builders": ("BuildOptions", "build_engine"),
            "classification": ("Failure", "Prediction", "RuntimeOptions", "ZeroShotClassifier"),
            "errors": tuple(name for name in __all__ if name.endswith("Error")),
            "hub": ("PushOptions", "PushedBundle", "download_bundle", "push_bundle"),
            "verification": ("selftest",),
        },
    )
