"""The files that travel: bundle, card, heads, golden samples and recorded results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import bundle, golden, head
    from p4q_edge.runtime.artifacts.bundle import (
        GOLDEN,
        GRAPH_FP32,
        REFERENCE,
        SUFFIX,
        WEIGHTS,
        Bundle,
        Manifest,
        ModelInfo,
        read_bundle,
    )
    from p4q_edge.runtime.artifacts.card import (
        Card,
        OptimizedCopy,
        Part,
        card_path,
        read_card,
        verify_digest,
        verify_engine,
        verify_parts,
        write_card,
        write_deployment,
    )
    from p4q_edge.runtime.artifacts.golden import Golden, read_golden
    from p4q_edge.runtime.artifacts.head import Adapter, Calibration, Head, load_head
    from p4q_edge.runtime.artifacts.head_store import (
        BUILT_IN,
        add_head,
        find_head,
        heads_folder,
        open_head,
        remove_head,
        require_fit,
        stored_heads,
    )
    from p4q_edge.runtime.artifacts.onnx_graph import OPERATORS, check_exported, check_model
    from p4q_edge.runtime.artifacts.precision import (
        LEAST_MAC_SHARE,
        Precision,
        quantized_parts,
        small_share,
        width_label,
    )
    from p4q_edge.runtime.artifacts.recorded_results import RecordedResults, pixel_digest

__all__ = [
    "BUILT_IN",
    "GOLDEN",
    "GRAPH_FP32",
    "LEAST_MAC_SHARE",
    "OPERATORS",
    "REFERENCE",
    "SUFFIX",
    "WEIGHTS",
    "Adapter",
    "Bundle",
    "Calibration",
    "Card",
    "Golden",
    "Head",
    "Manifest",
    "ModelInfo",
    "OptimizedCopy",
    "Part",
    "Precision",
    "RecordedResults",
    "add_head",
    "bundle",
    "card_path",
    "check_exported",
    "check_model",
    "find_head",
    "golden",
    "head",
    "heads_folder",
    "load_head",
    "open_head",
    "pixel_digest",
    "quantized_parts",
    "read_bundle",
    "read_card",
    "read_golden",
    "remove_head",
    "require_fit",
    "small_share",
    "stored_heads",
    "verify_digest",
    "verify_engine",
    "verify_parts",
    "width_label",
    "write_card",
    "write_deployment",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "bundle": (
                "Bundle",
                "GOLDEN",
                "GRAPH_FP32",
                "Manifest",
                "ModelInfo",
                "REFERENCE",
                "SUFFIX",
                "WEIGHTS",
                "read_bundle",
            ),
            "card": (
                "Card",
                "OptimizedCopy",
                "Part",
                "card_path",
                "read_card",
                "verify_digest",
                "verify_engine",
                "verify_parts",
                "write_card",
                "write_deployment",
            ),
            "golden": (
                "Golden",
                "read_golden",
            ),
            "head": (
                "Adapter",
                "Calibration",
                "Head",
                "load_head",
            ),
            "head_store": (
                "BUILT_IN",
                "add_head",
                "find_head",
                "heads_folder",
                "open_head",
                "remove_head",
                "require_fit",
                "stored_heads",
            ),
            "onnx_graph": (
                "OPERATORS",
                "check_exported",
                "check_model",
            ),
            "precision": (
                "LEAST_MAC_SHARE",
                "Precision",
                "quantized_parts",
                "small_share",
                "width_label",
            ),
            "recorded_results": (
                "RecordedResults",
                "pixel_digest",
            ),
        },
    )
