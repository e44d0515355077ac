"""Whether an engine computes here what its reference computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.verification.golden_check import (
        compare_golden,
        require,
        row_cosine,
        run_golden,
        wrong_values,
    )
    from p4q_edge.runtime.verification.self_test import ensure_golden, selftest

__all__ = [
    "compare_golden",
    "ensure_golden",
    "require",
    "row_cosine",
    "run_golden",
    "selftest",
    "wrong_values",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "golden_check": (
                "compare_golden",
                "row_cosine",
                "require",
                "run_golden",
                "wrong_values",
            ),
            "self_test": (
                "ensure_golden",
                "selftest",
            ),
        },
    )
