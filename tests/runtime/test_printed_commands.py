"""What pages print is run as printed, one command after the other, in a folder that has what the page names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]
CLASSES = ("circle", "square", "triangle")
SETTING = re.compile(r"([A-Z0-9_]+)=(.*)")


def block_below(page: str, heading: str) -> list[list[str]]:
    """Return the words of each command of the first block below a heading."""
    section = page.split(f"\n{heading}\n", 1)[1]
    return [shlex.split(line, comments=True) for line in section.split("```\n")[1].splitlines()]


@pytest.fixture
def here(tmp_path: Path, tiny_engine: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader: an engine, its bundle and another, photographs in folders and some of no class."""
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for path in tiny_engine.parent.glob("tiny.onnx*"):
        shutil.copy(path, path.name.replace("tiny", "out"))
    for name in ("model.p4q", "night.p4q"):
        shutil.copyfile(tiny_bundle, name)
    random = np.random.default_rng(3)
    places = [f"{kind}/{name}" for kind in ("photos", "labelled") for name in CLASSES]
    for place in (*places, "other", "bowls"):
        Path(place).mkdir(parents=True)
        for number in range(6):
            small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            small.resize((40, 30), Image.Resampling.BICUBIC).save(f"{place}/{number}.jpg")
    for name in ("image.jpg", "photo.jpg"):
        shutil.copyfile("photos/circle/0.jpg", name)
    return folder


@pytest.mark.parametrize(
    ("page", "heading", "least"),
    [
        ("SECURITY.md", "## Signatures", 6),
        ("runtime/README.md", "## Classes", 6),
        ("runtime/README.md", "### Many images", 4),
        ("runtime/README.md", "### Taught on the device", 4),
    ],
)
def test_a_block_runs_to_its_end(
    repository: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, page: str, heading: str, least: int
) -> None:
    if heading == "## Signatures":
        pytest.importorskip("cryptography", reason="needs the extra sign")
    ran = 0
    for words in block_below((repository / page).read_text(encoding="utf-8"), heading):
        with monkeypatch.context() as environment:
            while words and (setting := SETTING.fullmatch(words[0])):
                environment.setenv(setting[1], setting[2])
                words = words[1:]
            if not words or words[0] == "pip":
                continue
            ran += 1
            if words[0] == "openssl":
                if shutil.which("openssl") is None:
                    pytest.skip("needs openssl")
                subprocess.run(words, check=True, capture_output=True)
                continue
            assert words[0] == "p4q-edge", words
            # The classes of this engine are others than those of the page.
            code, _, err = run(*("circle" if word == "cup" else word for word in words[1:]))
            assert code == 0, (words, err)
    assert ran >= least


def test_blocks_are_found() -> None:
    page = "# a\n## b\ntext\n```\nx y  # z\nA=1 w 'u v'\n```\n```\nno\n```\n"
    assert block_below(page, "## b") == [["x", "y"], ["A=1", "w", "u v"]]
