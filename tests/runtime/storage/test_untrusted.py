"""JSON and safetensors of strangers are bounded, typed and refused with one line."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError
from p4q_edge.runtime.storage.untrusted import decode_json, encode_json, json_depth, load_tensors, save_tensors


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema_version: int = 1
    name: str
    values: dict[str, object] = {}


def measured_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((measured_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((measured_depth(item) for item in value), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
def test_the_depth_is_that_of_the_parsed_value(value: object) -> None:
    assert json_depth(json.dumps(value).encode()) == measured_depth(value)
    assert json_depth(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == measured_depth(value)


HEADER = 8 << 20


@pytest.mark.parametrize(
    ("unit", "depth"),
    [(b'\\"', 1), (b'"', 1), (b"[", 1), (b'"["{', 1 + HEADER // 4)],
    ids=["escaped", "quotes", "open", "in strings"],
)
def test_the_depth_of_8_megabytes_of_any_bytes_is_found(unit: bytes, depth: int) -> None:
    """In well under a second; where the time grew with their square, this would not end."""
    assert json_depth(b'{"a":"' + unit * (HEADER // len(unit))) == depth


def test_json_round_trip_has_sorted_keys() -> None:
    value = Example(name="x", values={"b": 1, "a": 2})
    text = encode_json(value)
    assert text.index(b'"a"') < text.index(b'"b"')
    assert decode_json(text, Example, source="x") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "x is not what this version writes"),
        (b"[]", "x is not what this version writes"),
        (b'{"schema_version": 1, "name": 3}', "Expected `str`, got `int`"),
        (b'{"schema_version": 1, "name": "a", "nmae": 1}', "unknown field `nmae`"),
        (b'{"name": "\xff"}', "x is not what this version writes"),
        (b'{"name": ' + b"[" * 100 + b"]" * 100 + b"}", "nests JSON more than 32 deep"),
        (b" " * ((16 << 20) + 1), "at most 16777216 are read"),
    ],
)
def test_other_json_is_corrupt(data: bytes, message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message):
        decode_json(data, Example, source="x")


def test_a_later_schema_asks_for_an_upgrade() -> None:
    with pytest.raises(ArtifactError, match="x has schema 2; this version reads schema 1. Upgrade"):
        decode_json(b'{"schema_version": 2, "anything": 1}', Example, source="x")


def test_tensors_round_trip_and_are_read_by_the_library() -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((0, 4), np.uint8),
        "c": np.array(3, np.int64),
        "d": np.arange(8, dtype=np.float16).reshape(4, 2).T,
    }
    metadata = {"z": "1", "a": "é\n"}
    data = save_tensors(tensors, metadata)
    loaded, read = load_tensors(data, source="x")
    assert read == metadata
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        np.testing.assert_array_equal(load(data)[name], tensor)
        assert loaded[name].shape == tensor.shape


def test_tensors_have_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys, numpy as np; from p4q_edge.runtime.storage.untrusted import save_tensors; "
        "sys.stdout.buffer.write(save_tensors({'a': np.ones(3)}, {str(i): str(i) for i in range(20)}))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header is cut off"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "its header is cut off"),
        ((2).to_bytes(8, "little") + b"{", "its header is cut off"),
        ((8).to_bytes(8, "little") + b"not json", "x is not a safetensors file"),
        ((100).to_bytes(8, "little") + b"[" * 50 + b"]" * 50, "nested too deep"),
        (save({str(i): np.zeros(1) for i in range(300)}), "has 300 tensors; at most 256"),
        (save({"a": np.zeros(1, np.bool_)}), "tensor 'a' has dtype BOOL; expected one of F32"),
    ],
)
def test_other_bytes_are_corrupt(data: bytes, message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message):
        load_tensors(data, source="x")


HOSTILE = """
import json
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage.untrusted import MAX_HEADER_BYTES, decode_json, load_tensors

size = MAX_HEADER_BYTES
parts = (b'\\\\"', b'\\\\', b'"', b"[", b"{", b"[]", b"[" * 32 + b"]" * 32, b"]", b'"a":', b'{"a":')
parts += (b"[[]", b"1", b"\\xff")
for part in parts:
    for start in (b"", b'{"a":"', b"["):
        header = (start + part * size)[:size]
        for read in (
            lambda: decode_json(header, dict, source="x"),
            lambda: load_tensors(len(header).to_bytes(8, "little") + header, source="x"),
        ):
            try:
                read()
            except CorruptArtifactError:
                continue
            assert part == b"[]" or part == b"1", part
print("done")
"""


@pytest.mark.slow
def test_eight_megabytes_of_any_hostile_header_are_refused_in_linear_time() -> None:
    """A quadratic scan of one of these takes days; the limit is far above what 78 linear ones need."""
    result = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=300)
    assert result.stdout == "done\n", result.stderr
