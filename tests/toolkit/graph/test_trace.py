"""Tracing: a free batch, no shape arithmetic, and what cannot be traced says so."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.graph.operators import adaptive_avg_pool2d, scaled_dot_product_attention
from p4q_edge.graph.trace import trace_float_graph


class Small(nn.Module):
    """Convolution in channels_last, fused attention over the pixels, pooling to `side` x `side`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, 2).to(memory_format=torch.channels_last)
        self.side = side

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv(image.float() / 255)  # (N, 8, 4, 4)
        rows = x.flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2)  # (N, 2, 16, 4)
        mixed = F.scaled_dot_product_attention(rows, rows, rows)
        x = x + mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (4, 4))
        features = F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), self.side).flatten(1)
        return features * 2, F.normalize(features, dim=-1), features


@pytest.mark.parametrize("side", [1, 2])
def test_attention_and_pooling_without_shape_arithmetic(side: int) -> None:
    model = Small(side).eval().requires_grad_(False)
    traced = trace_float_graph(model, (8, 8))
    operators = {node.op_type for node in traced.graph}
    assert {"Softmax", "GlobalAveragePool" if side == 1 else "AveragePool"} <= operators
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)  # traced with two
    session = ort.InferenceSession(ir.to_proto(traced).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = model(torch.from_numpy(images))
    for found, wanted in zip(session.run(None, {"image": images}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_the_phase_of_training_is_restored() -> None:
    model = Small(1).train()
    trace_float_graph(model, (8, 8))
    assert model.training


def test_uneven_pooling_is_refused() -> None:
    image = SimpleNamespace(shape=("batch", 8, 7, 7))
    with pytest.raises(NotImplementedError, match=r"expected pooling to a divisor of \[7, 7\], got \[2, 2\]"):
        adaptive_avg_pool2d(image, [2, 2])


def test_causal_attention_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="attention over all tokens"):
        scaled_dot_product_attention(None, None, None, is_causal=True)
