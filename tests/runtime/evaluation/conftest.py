"""The tiny engine with its bundle beside it, and labelled images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card


@pytest.fixture
def engine(tiny_engine: Path, tiny_bundle: Path) -> Path:
    """The tiny engine with its bundle beside it."""
    tiny_engine.with_suffix(".p4q").write_bytes(tiny_bundle.read_bytes())
    return tiny_engine


@pytest.fixture
def photos(engine: Path, tmp_path: Path) -> Path:
    """The golden images as PNG files, in folders named by the class that the reference gives them."""
    card = read_card(engine)
    golden = card.golden_samples()
    for index, image in enumerate(golden.image):
        folder = tmp_path / "photos" / card.class_names[golden.logits[index].argmax()]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def validated(engine: Path, tmp_path: Path) -> Path:
    """The 40 images that the bundle has results for, as PNG files, in folders named by their recorded labels."""
    found = read_bundle(engine.with_suffix(".p4q")).reference()
    assert found is not None
    images = np.random.default_rng(11).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    for index, image in enumerate(images):
        folder = tmp_path / "validated" / read_card(engine).class_names[found.label[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index}.png")
    return tmp_path / "validated"
