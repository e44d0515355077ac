"""Tensors of KServe's protocol: what is written is read again, and what is damaged is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.http.kserve.tensors import read_inference, write_inference

KINDS = {"UINT8": np.uint8, "FP32": np.float32, "INT32": np.int32, "BOOL": np.bool_}


def request(*tensors: dict[str, Any], blobs: bytes = b"", **more: Any) -> tuple[bytes, str]:
    head = json.dumps({"inputs": list(tensors), **more}).encode()
    return head + blobs, str(len(head))


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@given(
    st.sampled_from(sorted(KINDS)).flatmap(
        lambda kind: arrays.arrays(
            KINDS[kind],
            arrays.array_shapes(min_dims=1, max_dims=4, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False} if kind == "FP32" else None,
        )
    ),
    st.booleans(),
)
def test_what_was_sent_is_read(values: np.ndarray, as_bytes: bool) -> None:
    kind = next(name for name, dtype in KINDS.items() if dtype == values.dtype)
    tensor: dict[str, Any] = {"name": "x", "shape": list(values.shape), "datatype": kind}
    if as_bytes:
        body, length = request({**tensor, "parameters": {"binary_data_size": values.nbytes}}, blobs=values.tobytes())
        inference = read_inference(body, length)
    else:
        body, _ = request({**tensor, "data": values.ravel().tolist()})
        inference = read_inference(body, None)
    read = inference.tensors["x"]
    assert isinstance(read, np.ndarray)
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_files_are_read(files: list[bytes]) -> None:
    blob = texts(*files)
    tensor = {"name": "x", "shape": [len(files), 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    body, length = request(tensor, blobs=blob)
    assert read_inference(body, length).tensors["x"] == files


def test_nested_data_is_read_too() -> None:
    body, _ = request({"name": "x", "shape": [2, 2], "datatype": "INT32", "data": [[1, 2], [3, 4]]})
    read = read_inference(body, None).tensors["x"]
    np.testing.assert_array_equal(read, [[1, 2], [3, 4]])  # type: ignore[arg-type]


X = {"name": "x", "shape": [2], "datatype": "UINT8"}


@pytest.mark.parametrize(
    ("tensor", "blobs", "said"),
    [
        ({**X, "parameters": {"binary_data_size": 3}}, b"ab", "tensor 'x' claims 3 bytes; 2 are left."),
        ({**X, "parameters": {"binary_data_size": -1}}, b"ab", "claims -1 bytes"),
        ({**X, "parameters": {"binary_data_size": 1}}, b"a", "of shape [2] needs 2 bytes, got 1."),
        ({**X, "parameters": {"binary_data_size": 2}}, b"abc", "1 byte belongs to no tensor."),
        ({**X, "data": [1, 2, 3]}, b"", "tensor 'x' is not UINT8 of shape [2]: 3 values"),
        ({**X, "data": [1, 256]}, b"", "values that UINT8 cannot hold"),
        ({**X, "data": [1, 1.5]}, b"", "values that UINT8 cannot hold"),
        ({**X, "data": ["a", "b"]}, b"", "is not UINT8"),
        ({**X, "data": [[1], [1, 2]]}, b"", "is not UINT8"),
        ({**X}, b"", "is not UINT8"),
        ({**X, "shape": [-2], "data": [1]}, b"", "has the shape [-2]; expected 1 to 8 sides, none negative"),
        ({**X, "shape": [], "data": [1]}, b"", "has the shape []"),
        ({**X, "shape": [1 << 62, 1 << 62], "parameters": {"binary_data_size": 2}}, b"ab", "has the shape"),
        ({**X, "shape": [0, 1 << 62, 1 << 62], "parameters": {"binary_data_size": 0}}, b"", "has the shape"),
        ({**X, "shape": [0, 1 << 63], "data": []}, b"", "has the shape"),
        ({**X, "shape": [1] * 100, "data": [1]}, b"", "has the shape"),
        (
            {**X, "datatype": "FP64", "data": [1, 2]},
            b"",
            "expected UINT8, FP32, INT32, BOOL or BYTES, got",
        ),
        ({**X, "datatype": "BYTES", "data": ["a", "b"]}, b"", "which JSON cannot; send them as binary data"),
        ({**X, "datatype": "BYTES", "parameters": {"binary_data_size": 3}}, b"abc", "should hold 2 elements"),
        ({**X, "datatype": "BYTES", "parameters": {"binary_data_size": 6}}, b"\xff\xff\xff\xffab", "should hold 2"),
        ({**X, "datatype": "BYTES", "parameters": {"binary_data_size": 5}}, texts(b"a"), "should hold 2 elements"),
        ({"name": "x"}, b"", "does not follow KServe's protocol"),
    ],
)
def test_a_damaged_request_is_refused(tensor: dict[str, Any], blobs: bytes, said: str) -> None:
    body, length = request(tensor, blobs=blobs)
    with pytest.raises(InputError) as error:
        read_inference(body, length)
    assert said in str(error.value)


@pytest.mark.parametrize("length", ["-1", "x", "99999", "", "9" * 5000])
def test_a_length_that_is_none(length: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length must be at most"):
        read_inference(b"{}", length)


@pytest.mark.parametrize("body", [b'{"inputs": "\xff"}', b'{"inputs": [' + b"[" * 100_000])
def test_a_text_that_is_none(body: bytes) -> None:
    with pytest.raises(InputError, match="does not follow KServe's protocol"):
        read_inference(body, None)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_noise_is_refused_and_harms_nothing(body: bytes, length: int) -> None:
    with pytest.raises(InputError):
        read_inference(body, str(length))


def test_answers_in_json_and_in_bytes() -> None:
    inputs = {**X, "data": [1, 2]}
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "score"}]
    body, _ = request(inputs, id="7", outputs=outputs)
    inference = read_inference(body, None)
    values = {"label": [["ä", "b"]], "score": np.array([[0.5, 0.25]], np.float32), "known": np.array([[True]])}
    written, headers = write_inference(inference, values, model="m")
    length = int(headers["inference-header-content-length"])
    document = json.loads(written[:length])
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "7")
    label, score = document["outputs"]
    assert label == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [1, 2],
        "parameters": {"binary_data_size": len(texts("ä".encode(), b"b"))},
    }
    assert score == {"name": "score", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.25]}
    assert written[length:] == texts("ä".encode(), b"b")

    everything, headers = write_inference(read_inference(request(inputs)[0], None), values, model="m")
    assert headers == {"content-type": "application/json"}
    assert [output["name"] for output in json.loads(everything)["outputs"]] == ["label", "score", "known"]


def test_an_output_that_does_not_exist() -> None:
    inference = read_inference(request({**X, "data": [1, 2]}, outputs=[{"name": "none"}])[0], None)
    with pytest.raises(InputError, match="there is no output 'none'; there are score"):
        write_inference(inference, {"score": np.zeros((1, 1), np.float32)}, model="m")
