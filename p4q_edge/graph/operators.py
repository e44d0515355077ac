"""How operators of torch are written in ONNX where the exporter's own way costs shape arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

from onnxscript import opset20


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate `aten.scaled_dot_product_attention` for (N, heads, L, head_size).

    Raises:
        NotImplementedError: a causal mask or grouped queries, which no image tower has.
    """
    if is_causal or enable_gqa:
        raise NotImplementedError("expected attention over all tokens, got a causal or grouped one")
    factor = scale if scale is not None else 1.0 / math.sqrt(query.shape[-1])
    op: Any = opset20  # its stubs do not know that tracing passes symbolic values
    # The factor on the query: one small product, which compilers fold into the bias addition before it.
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def adaptive_avg_pool2d(image: Any, output_size: Sequence[int]) -> Any:
    """Translate `aten.adaptive_avg_pool2d` where every output averages a window of one size.

    Without it the exporter goes through torch's strides, and reads the batch size from the uint8 image.

    Raises:
        NotImplementedError: windows of different sizes.
    """
    op: Any = opset20
    sides = [int(side) for side in image.shape[2:]]
    if list(output_size) == [1, 1]:
        return op.GlobalAveragePool(image)
    if any(side % out for side, out in zip(sides, output_size, strict=True)):
        raise NotImplementedError(f"expected pooling to a divisor of {sides}, got {list(output_size)}")
    window = [side // out for side, out in zip(sides, output_size, strict=True)]
    return op.AveragePool(image, kernel_shape=window, strides=window)
