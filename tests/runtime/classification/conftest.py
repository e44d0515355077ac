"""A classifier on the small engine, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier


@pytest.fixture
def classifier(tiny_engine: Path) -> Iterator[ZeroShotClassifier]:
    with ZeroShotClassifier(tiny_engine) as loaded:
        yield loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures, two of them in a subfolder, and a text file."""
    generator = np.random.default_rng(5)
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for index in range(11):
        pixels = generator.integers(0, 256, (12 + index, 20, 3), dtype=np.uint8)
        parent = root / "sub" if index in (3, 7) else root
        Image.fromarray(pixels).save(parent / f"{index:02}.png")
    (root / "notes.txt").write_text("no image")
    return root
