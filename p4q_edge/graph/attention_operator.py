"""How torch's fused attention is written in ONNX: two products and a softmax, no shape arithmetic."""

import math
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
    """Translate ``aten.scaled_dot_product_attention`` for (N, heads, L, head_size).

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
