"""Tables of captions that are too large are refused before the text tower runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from p4q_edge.evaluation import captioned
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation import ValidateRequest
from p4q_edge.runtime.images import PreprocessSpec


def test_a_table_that_no_memory_holds_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["path,caption"]
    for image in range(4):
        Image.new("RGB", (4, 4), (image, 0, 0)).save(tmp_path / f"{image}.png")
        lines += [f"{image}.png,caption {image} {number}" for number in range(3)]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(lines))
    monkeypatch.setattr(captioned, "MAX_COMPARED", 47)
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    no_model: Any = SimpleNamespace(model=SimpleNamespace(preprocess=spec))
    request = ValidateRequest(engine=tmp_path / "out.onnx", pairs=table)
    with pytest.raises(InputError, match="at most 47 comparisons .* got 4 images and 12 captions.*with --limit"):
        captioned.read_captioned(request, table, no_model)
    monkeypatch.setattr(captioned, "MAX_COMPARED", 48)
    with pytest.raises(AttributeError, match="tokenizer"):
        captioned.read_captioned(request, table, no_model)


def test_damaged_images_are_named_before_the_text_tower_runs(tmp_path: Path) -> None:
    for image in range(3):
        Image.new("RGB", (4, 4), (image, 0, 0)).save(tmp_path / f"{image}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    table = tmp_path / "pairs.csv"
    table.write_text("path,caption\n0.png,a\n1.png,b\n2.png,c\n")
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    no_tower: Any = SimpleNamespace(model=SimpleNamespace(preprocess=spec))
    request = ValidateRequest(engine=tmp_path / "out.onnx", pairs=table)
    with pytest.raises(InputError, match=r"--pairs .*pairs\.csv: 1 of 3 images cannot be read: .*1\.png"):
        captioned.read_captioned(request, table, no_tower)
