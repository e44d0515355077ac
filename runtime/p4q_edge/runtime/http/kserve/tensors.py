"""Tensors of KServe's protocol, version 2: in JSON, or as bytes behind it.

A request is JSON, behind which the bytes of its tensors may stand one after another; the header
`Inference-Header-Content-Length` tells where the JSON ends. Sources: KServe's "Open Inference Protocol" and Triton's
extension "Binary tensor data".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.wording import number_of, one_or_many

LENGTH_HEADER = "inference-header-content-length"
_DTYPES = {"UINT8": np.uint8, "FP32": np.float32, "INT32": np.int32, "BOOL": np.bool_}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
_MAX_DIMS = 8
_MAX_VALUES = 1 << 40
"""More than any body holds. NumPy fails at too many dimensions, and at sides too long for 64 bits, even of nothing."""
_SHAPES = f"expected 1 to {_MAX_DIMS} sides, none negative, and at most {_MAX_VALUES} values"
_MAX_DIGITS = 18


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about one tensor, or about all outputs; other keys are left alone, as the protocol asks."""

    binary_data: bool | None = None
    binary_data_size: int | None = None
    binary_data_output: bool = False


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of a request."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = Parameters()
    data: Any = None


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a request."""

    inputs: tuple[InputTensor, ...]
    id: str = ""
    parameters: Parameters = Parameters()
    outputs: tuple[RequestedOutput, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A request that was read.

    Attributes:
        request: its JSON.
        tensors: by name; those of `BYTES` are lists of bytes.
    """

    request: InferRequest
    tensors: Mapping[str, np.ndarray | list[bytes]]

    def wanted(self, names: Sequence[str]) -> dict[str, bool]:
        """Return the outputs that are asked for, all of them if none is named, and whether each goes as bytes.

        Raises:
            InputError: one does not exist.
        """
        default = self.request.parameters.binary_data_output
        if not self.request.outputs:
            return dict.fromkeys(names, default)
        unknown = [output.name for output in self.request.outputs if output.name not in names]
        if unknown:
            raise InputError(f"there is no output {unknown[0][:100]!r}; there are {', '.join(names)}.")
        return {
            output.name: default if output.parameters.binary_data is None else output.parameters.binary_data
            for output in self.request.outputs
        }


def read_inference(body: bytes, length: str | None) -> Inference:
    """Return the tensors of a request.

    Args:
        body: all of it.
        length: the header that tells where its JSON ends; None: it is JSON alone.

    Raises:
        InputError: it is not what the protocol says.
    """
    end = len(body) if length is None else _length(length, most=len(body))
    try:
        request = msgspec.json.decode(body[:end], type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request does not follow KServe's protocol, version 2: {error}") from error
    tensors: dict[str, np.ndarray | list[bytes]] = {}
    rest = memoryview(body)[end:]
    for tensor in request.inputs:
        if not _can_be(tensor.shape):
            raise InputError(f"tensor {tensor.name[:100]!r} has the shape {list(tensor.shape)[:8]}; {_SHAPES}.")
        size = tensor.parameters.binary_data_size
        if size is None:
            tensors[tensor.name] = _from_json(tensor)
            continue
        if not 0 <= size <= len(rest):
            raise InputError(
                f"tensor {tensor.name[:100]!r} claims {number_of(size, 'byte')}; {len(rest)} "
                f"{one_or_many(len(rest), 'is', 'are')} left."
            )
        tensors[tensor.name] = _from_bytes(tensor, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise InputError(f"{number_of(len(rest), 'byte belongs', 'bytes belong')} to no tensor.")
    return Inference(request=request, tensors=tensors)


def write_inference(
    inference: Inference, outputs: Mapping[str, np.ndarray | Sequence[Sequence[str]]], *, model: str
) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer with its headers; texts are lists (n, k) of them."""
    described, blobs = [], []
    for name, as_bytes in inference.wanted(tuple(outputs)).items():
        values = outputs[name]
        is_text = not isinstance(values, np.ndarray)
        array = np.asarray(values, dtype=object) if is_text else np.asarray(values)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if is_text else _NAMES[array.dtype],
            "shape": list(array.shape),
        }
        if as_bytes:
            blob = _text_bytes(array) if is_text else np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    document = {"model_name": model, "model_version": "1", "outputs": described}
    if inference.request.id:
        document["id"] = inference.request.id
    head = msgspec.json.encode(document)
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
    return b"".join([head, *blobs]), headers


def _length(text: str, *, most: int) -> int:
    if not text.isdecimal() or len(text) > _MAX_DIGITS or int(text) > most:
        raise InputError(f"Inference-Header-Content-Length must be at most {most}, the length of the body.")
    return int(text)


def _can_be(shape: tuple[int, ...]) -> bool:
    positive = [max(side, 1) for side in shape]
    return 1 <= len(shape) <= _MAX_DIMS and min(shape) >= 0 and math.prod(positive) <= _MAX_VALUES


def _from_json(tensor: InputTensor) -> np.ndarray | list[bytes]:
    if tensor.datatype == "BYTES":
        raise InputError(
            f"tensor {tensor.name[:100]!r} holds the bytes of image files, which JSON cannot; send them as binary data."
        )
    try:
        values = np.asarray(tensor.data)
        kind = _dtype(tensor)
        if values.dtype.kind not in "biuf" or values.size != math.prod(tensor.shape):
            raise ValueError(f"{number_of(values.size, 'value')} of {values.dtype}")
        cast = values.astype(kind)
        if not np.array_equal(cast, values):
            raise ValueError(f"values that {tensor.datatype} cannot hold")
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"tensor {tensor.name[:100]!r} is not {tensor.datatype} of shape {list(tensor.shape)[:8]}: {error}"
        ) from error
    return cast.reshape(tensor.shape)


def _from_bytes(tensor: InputTensor, data: memoryview) -> np.ndarray | list[bytes]:
    count = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, data, count=count)
    kind = _dtype(tensor)
    if len(data) != count * kind.itemsize:
        raise InputError(
            f"tensor {tensor.name[:100]!r} of shape {list(tensor.shape)[:8]} needs "
            f"{number_of(count * kind.itemsize, 'byte')}, got "
            f"{len(data)}."
        )
    return np.frombuffer(data, dtype=kind).reshape(tensor.shape)


def _dtype(tensor: InputTensor) -> np.dtype[Any]:
    if tensor.datatype not in _DTYPES:
        raise InputError(f"expected {', '.join(_DTYPES)} or BYTES, got the datatype {tensor.datatype[:40]!r}.")
    return np.dtype(_DTYPES[tensor.datatype])


def _texts(name: str, data: memoryview, *, count: int) -> list[bytes]:
    """Return elements, each behind its length in four bytes, the lowest first."""
    found, at = [], 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size > len(data) - at:
            break
        found.append(bytes(data[at : at + size]))
        at += size
    if at != len(data) or len(found) != count:
        raise InputError(
            f"tensor {name[:100]!r} should hold {number_of(count, 'element')}, each behind its length in four bytes."
        )
    return found


def _text_bytes(array: np.ndarray) -> bytes:
    encoded = [str(value).encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
