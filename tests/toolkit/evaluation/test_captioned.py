"""Tables of captions that are too large are refused before the text tower runs."""

from pathlib import Path

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
    request = ValidateRequest(engine=tmp_path / "out.onnx", pairs=table)
    with pytest.raises(InputError, match="at most 47 comparisons .* got 4 images and 12 captions.*with --limit"):
        captioned.open_captions(request, table, spec)
    monkeypatch.setattr(captioned, "MAX_COMPARED", 48)
    assert len(captioned.open_captions(request, table, spec).pixels) == 4
