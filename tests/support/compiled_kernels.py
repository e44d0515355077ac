"""Kernels that TensorRT for RTX compiled without a GPU."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HEAD_LINEARS = 3  # projection, and both linears of the adapter
BLOCKS = {"demo": 4, "ViT-B-32": 12}
# Ends of the list: image, patches, first norm; projection, adapter, norm, classes. Nine a block, and eight in the
# last one, whose attention reads the joint product as it comes.
KERNELS = {"demo": 46, "ViT-B-32": 118}
only_on_demand = pytest.mark.skipif(
    not os.environ.get("P4Q_COMPILE_ALL"),
    reason="P4Q_COMPILE_ALL=1 compiles ViT-B/16, SigLIP, RN50, MobileCLIP-S1, INT4, FP8",
)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A model's FP16 graph, the compile check's document about it, and both as golden text."""

    model: Path
    document: dict[str, Any]
    text: str


def compare_with_recorded(found: str, repository: Path, architecture: str) -> None:
    """Compare with the text that golden.py wrote."""
    recorded = (repository / "tests" / "golden" / "kernels" / f"{architecture}.txt").read_text()
    difference = "\n".join(difflib.unified_diff(recorded.splitlines(), found.splitlines(), "recorded", "found", n=1))
    assert found == recorded, (
        f"fusion of {architecture} changed; if it is meant to, run "
        f"`python tools/compile_check/golden.py {architecture}`\n{difference}"
    )
