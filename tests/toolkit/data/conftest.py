"""Folders of photographs of two classes."""

from pathlib import Path

import pytest
from image_files import png_bytes, write_file, write_photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            write_file(tmp_path / "photos" / name / f"{i}.png", png_bytes(40 * label + i))
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four coloured photographs of each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            write_photo(tmp_path / "photos" / name / f"{i}.png", 40 * label + i)
    return tmp_path / "photos"
