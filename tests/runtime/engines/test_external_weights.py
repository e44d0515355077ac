"""Weights given to ONNX Runtime beside the model: the same values as from the whole one, from memory that may go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts import check_model
from p4q_edge.runtime.engines.onnxruntime import engine, external_weights
from p4q_edge.runtime.engines.onnxruntime.engine import (
    OnnxRuntimeEngine,
    open_session,
    optimized_path,
    session_options,
)
from p4q_edge.runtime.engines.onnxruntime.external_weights import LEAST_BYTES, split_weights
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import read_buffer

from onnx_bytes import field

FLOAT, UINT8, INT8, INT32, FLOAT16 = 1, 2, 3, 6, 10
DTYPES = {FLOAT: "<f4", UINT8: "u1", INT8: "i1", FLOAT16: "<f2"}


def tensor(name: str, values: np.ndarray, kind: int, *, packed: bool = False) -> bytes:
    """Return a TensorProto with raw values."""
    sizes = [field(1, bytes(values.shape))] if packed else [field(1, size) for size in values.shape]
    return b"".join(sizes) + field(2, kind) + field(8, name.encode()) + field(9, values.tobytes())


def model_of(*tensors: bytes) -> bytes:
    return field(1, 9) + field(7, field(2, b"g") + b"".join(field(5, each) for each in tensors)) + field(2, b"after")


@given(kind=st.sampled_from(sorted(DTYPES)), rows=st.integers(1, 100), packed=st.booleans(), shift=st.integers(0, 7))
def test_the_parts_are_the_model(kind: int, rows: int, packed: bool, shift: int) -> None:
    values = np.arange(rows * 100 * np.dtype(DTYPES[kind]).itemsize, dtype=np.uint8).view(DTYPES[kind])
    values = values.reshape(rows, 100)
    small = tensor("small", np.ones((1, 3), np.float32), FLOAT)
    model = field(3, bytes(shift)) + model_of(small, tensor("large", values, kind, packed=packed))
    rest, weights = split_weights(model)
    assert (list(weights) == ["large"]) is (values.nbytes >= LEAST_BYTES)
    assert field(5, small) in rest
    assert rest.endswith(field(2, b"after"))
    for found in weights.values():
        np.testing.assert_array_equal(found.view(np.uint8), values.view(np.uint8))
        assert found.shape == values.shape
        assert found.flags.aligned
        assert len(rest) < LEAST_BYTES


CASES = (
    "another type",
    "other values",
    "too few",
    "none at all",
    "dimensions without end",
    "a field more",
    "named twice",
)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_plain_stays_in_the_model(case: str) -> None:
    values = np.ones((64, 256), np.int8)
    plain = tensor("w", values, INT8)
    other = {
        "another type": tensor("w", np.ones((64, 64), np.int32), INT32),
        "other values": tensor("w", values[:0], INT8) + field(5, b"\1" * values.size),
        "too few": plain.replace(field(1, 64), field(1, 65), 1),
        "none at all": plain.replace(field(1, 64), field(1, 0), 1),
        "dimensions without end": field(1, (1 << 63) - 1) * 20_000 + plain,  # a product of 380,000 digits
        "a field more": plain + field(12, b"words"),
        "named twice": plain,
    }[case]
    model = model_of(*([plain, other] if case == "named twice" else [other]))
    rest, weights = split_weights(model)
    assert field(5, other) in rest
    assert list(weights) == (["w"] if case == "named twice" else [])


def test_an_engine_computes_the_same_from_weights_beside_it(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_weights, "LEAST_BYTES", 1)
    copy = optimized_path(tiny_engine)
    buffer = read_buffer(copy, limit_bytes=1 << 30, kind="copy")
    _, weights = split_weights(buffer)
    whole = np.frombuffer(buffer, np.uint8)
    assert sum(np.shares_memory(each, whole) for each in weights.values()) >= 2  # int8, whatever their place
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8)
    expected = open_session(copy.read_bytes(), session_options("exact", threads=1, optimized=True))
    given_weights: list[np.ndarray] = []

    def writable(model: bytes | memoryview) -> tuple[bytes, dict[str, np.ndarray]]:
        small, found = split_weights(model)
        found = {name: values.copy() for name, values in found.items()}
        given_weights.extend(found.values())
        return small, found

    monkeypatch.setattr(engine, "split_weights", writable)
    shared = OnnxRuntimeEngine(buffer, threads=1, optimized=True)
    assert len(given_weights) == len(weights)
    # The session does not hold this memory: it must not read it any more.
    for each in given_weights:
        each[...] = 0
    for left, right in zip(expected.run(None, {"image": image}), shared.run(image).values(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_weights_in_other_files_are_refused_before_any_are_split_off(tiny_engine: Path) -> None:
    model = optimized_path(tiny_engine).read_bytes()
    elsewhere, _ = split_weights(model_of(tensor("w", np.ones((64, 256), np.int8), INT8)))
    for given_model in (elsewhere, memoryview(model + elsewhere)):
        with pytest.raises(CorruptArtifactError, match="keeps weights in another file"):
            check_model(given_model, name="x")
        with pytest.raises(CorruptArtifactError, match="keeps weights in another file"):
            OnnxRuntimeEngine(given_model, optimized=True, name="x")
