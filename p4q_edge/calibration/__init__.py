"""Ranges and scales of a quantized tower, measured on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.calibration.calibrate import (
        SAMPLE_SIZE,
        CalibratedEncoder,
        add_products,
        calibrate_encoder,
        deployed_encoder,
    )
    from p4q_edge.calibration.fit import refine
    from p4q_edge.calibration.keep_in_float import (
        embedding_loss,
        fewest,
        in_float,
        quantized_layers,
        rank_by_sensitivity,
        teacher_of,
    )
    from p4q_edge.calibration.text import calibrate_text
    from p4q_edge.calibration.weight_bits import mean_weight_bits, set_weight_bits

__all__ = [
    "SAMPLE_SIZE",
    "CalibratedEncoder",
    "add_products",
    "calibrate_encoder",
    "calibrate_text",
    "deployed_encoder",
    "embedding_loss",
    "fewest",
    "in_float",
    "mean_weight_bits",
    "quantized_layers",
    "rank_by_sensitivity",
    "refine",
    "set_weight_bits",
    "teacher_of",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "calibrate": (
                "CalibratedEncoder",
                "SAMPLE_SIZE",
                "add_products",
                "calibrate_encoder",
                "deployed_encoder",
            ),
            "fit": ("refine",),
            "keep_in_float": (
                "embedding_loss",
                "fewest",
                "in_float",
                "quantized_layers",
                "rank_by_sensitivity",
                "teacher_of",
            ),
            "text": ("calibrate_text",),
            "weight_bits": (
                "mean_weight_bits",
                "set_weight_bits",
            ),
        },
    )
