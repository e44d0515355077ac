"""ONNX models have less than 2 GiB, as Protocol Buffers do: a larger file is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime import InputError, read_card
from p4q_edge.runtime.engines.onnxruntime.engine import read_model
from p4q_edge.runtime.engines.openvino.kept_models import verified_bytes


def sparse(path: Path, size: int) -> Path:
    """A file that claims `size` bytes and takes no space."""
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_model_of_two_gibibytes_is_refused(tiny_engine: Path, tmp_path: Path, backend: str) -> None:
    path = sparse(tmp_path / "large.onnx", 2**31)
    with pytest.raises(InputError) as refused:
        read_model(path) if backend == "onnxruntime" else verified_bytes(path, read_card(tiny_engine))
    assert str(refused.value) == (
        f"expected at most 2147483647 bytes in the engine {path}, got 2147483648. Check that this is the right file."
    )
