"""What a quantized linear layer, convolution and attention bring to the graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from p4q_edge.quant import affine

OPSET_OF_BLOCKS = 21
"""The first with INT4 and with scales of blocks. TensorRT reads it from 10.13 on at least; 10.3 stops at 20."""
INT8_WEIGHT, INT4_WEIGHT, FP8_WEIGHT = ".weight_int8", ".weight_int4", ".weight_fp8"
"""Ends of the names of constants with the numbers of a layer's weight; what stands before is the layer's path."""
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
"""What NumPy has of ONNX's FLOAT8E4M3FN, of opset 19 and later."""


def weight_path(name: str, ends: Sequence[str] = (INT8_WEIGHT, INT4_WEIGHT, FP8_WEIGHT)) -> str | None:
    """Return the path of the layer whose weight a constant of this name holds; None if it has none of these ends.

    >>> weight_path("encoder.proj.weight_int4"), weight_path("encoder.proj.weight_scale")
    ('encoder.proj', None)
    """
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), None)


@dataclass(frozen=True, kw_only=True)
class LinearQuantization:
    """The integers, or E4M3 numbers, and scales of one linear layer; symmetric, zero point 0.

    Attributes:
        weight: int8 (out, in); or float8_e4m3fn, where inputs are E4M3 numbers too.
        weight_scale: float32 (out,), or (out, blocks) of whole blocks of neighbouring inputs; positive.
        weight_bits: 2 to 8; the integers lie in `affine.weight_range`.
        input_scale: positive, for the whole input tensor; 1 where it is not quantized.
        input_bits: 2 to 8; below 8 the graph clips the input to `affine.activation_range`. With blocks 16: the input is
            not quantized.

    Raises:
        ValueError: an array of another type or shape, or values outside these ranges.
    """

    weight: NDArray[Any]
    weight_scale: NDArray[np.float32]
    weight_bits: int
    input_scale: float
    input_bits: int

    def __post_init__(self) -> None:
        known = self.weight.dtype in (np.int8, E4M3) and self.weight.ndim == 2
        _check(known, "weight is int8 or float8_e4m3fn (out, in)", self.weight)
        scale = self.weight_scale
        rows, inputs = self.weight.shape
        if scale.ndim == 1:
            _check(scale.shape == (rows,), "weight_scale is (out,)", scale)
            affine.activation_range(self.input_bits)
        else:
            whole = scale.ndim == 2 and len(scale) == rows and scale.shape[1] > 1 and inputs % scale.shape[1] == 0
            _check(whole, "weight_scale is (out, blocks), of at least two whole blocks", scale)
        _check(bool(np.all(np.isfinite(scale) & (scale > 0))), "weight_scale is positive and finite", scale)
        if self.in_fp8:
            _check(scale.ndim == 1, "weight_scale of E4M3 numbers is (out,)", scale)
            _check(bool(np.isfinite(self.weight.astype(np.float32)).all()), "weight is finite", self.weight)
        else:
            low, high = affine.weight_range(self.weight_bits)
            inside = low <= int(self.weight.min()) and int(self.weight.max()) <= high
            _check(inside, f"weight lies in [{low}, {high}]", self.weight)
        if not (np.isfinite(self.input_scale) and self.input_scale > 0):
            raise ValueError(f"expected: input_scale is positive and finite; got {self.input_scale}")

    @property
    def in_fp8(self) -> bool:
        """Whether weight and inputs are E4M3 numbers."""
        return bool(self.weight.dtype == E4M3)

    @property
    def block(self) -> int | None:
        """Number of neighbouring inputs that share a scale; None: all of a row do."""
        return None if self.weight_scale.ndim == 1 else self.weight.shape[1] // self.weight_scale.shape[1]


@dataclass(frozen=True, kw_only=True)
class ConvQuantization:
    """The integers and scales of one convolution; symmetric, zero point 0.

    Attributes:
        weight: int8 (out, in / groups, kH, kW).
        weight_scale: float32 (out,), positive.
        weight_bits: 2 to 8.
        input_scale: positive, for the whole input tensor.
        input_bits: 2 to 8.

    Raises:
        ValueError: an array of another type or shape, or values outside these ranges.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    weight_bits: int
    input_scale: float
    input_bits: int

    def __post_init__(self) -> None:
        _check(self.weight.dtype == np.int8 and self.weight.ndim == 4, "weight is int8 (out, in, kH, kW)", self.weight)
        # The rules of a linear hold for the same numbers as one row an output channel.
        LinearQuantization(
            weight=self.weight.reshape(len(self.weight), -1),
            weight_scale=self.weight_scale,
            weight_bits=self.weight_bits,
            input_scale=self.input_scale,
            input_bits=self.input_bits,
        )


@dataclass(frozen=True, kw_only=True)
class GridQuantization:
    """One grid of a tensor for all that read it.

    Attributes:
        conv: path of the convolution by which the tensor is found.
        via: it is that convolution's input or output, or what the pool before the convolution reads.
        scale: positive.
        bits: 2 to 8.
    """

    conv: str
    via: Literal["input", "output", "pooled"]
    scale: float
    bits: int


@dataclass(frozen=True, kw_only=True)
class AttentionQuantization:
    """The scales of the tensors that an attention multiplies; symmetric, zero point 0.

    Attributes:
        query, key, softmax, value: positive, each for the whole tensor.
        bits: 2 to 8; below 8 the graph clips all four to `affine.activation_range`.

    Raises:
        ValueError: a scale that is not positive and finite.
    """

    query: float
    key: float
    softmax: float
    value: float
    bits: int

    def __post_init__(self) -> None:
        affine.activation_range(self.bits)
        for name in ("query", "key", "softmax", "value"):
            scale = getattr(self, name)
            if not (np.isfinite(scale) and scale > 0):
                raise ValueError(f"expected: the {name} scale is positive and finite; got {scale}")


def _check(holds: bool, expected: str, array: NDArray[Any]) -> None:
    if not holds:
        raise ValueError(f"expected: {expected}; got {array.dtype} {array.shape}, {array.min()} to {array.max()}")
