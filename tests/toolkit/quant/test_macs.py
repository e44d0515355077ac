"""The share of multiply-accumulates in integers, against counts by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.conv import QuantConv2d
from p4q_edge.quant.linear import QuantLinear, quant_linears
from p4q_edge.quant.macs import MacCount, count_macs
from p4q_edge.quant.scheme import QuantScheme

TOKENS, WIDTH, DIM = 5, 64, 32
"""Of the toy: 2 x 2 patches of 8 x 8 pixels and the class token."""


def _by_hand(*, products: bool) -> MacCount:
    block = TOKENS * 12 * WIDTH * WIDTH
    attention = 2 * TOKENS * TOKENS * WIDTH
    stem = 4 * 3 * 8 * 8 * WIDTH
    linears = 2 * block + WIDTH * DIM
    # The class token alone is read behind the last block; as a module it computes all of them.
    return MacCount(total=stem + linears + 2 * attention, integer=linears + (attention if products else 0))


@pytest.mark.parametrize("products", [False, True])
def test_a_transformers_share_is_that_of_a_count_by_hand(toy_clip: LoadedModel, products: bool) -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scheme = QuantScheme(quantize_attention=products)
    calibrated = calibrate_encoder(toy_clip, images, scheme)
    found = count_macs(calibrated.encoder, torch.rand(3, 3, 16, 16))
    assert found == _by_hand(products=products)
    assert 0.8 < found.integer_share < 1


def test_a_linear_that_was_never_reached_does_not_count(toy_clip: LoadedModel) -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    calibrated = calibrate_encoder(toy_clip, images, QuantScheme())
    before = count_macs(calibrated.encoder, torch.rand(1, 3, 16, 16))
    first = next(iter(quant_linears(calibrated.encoder).values()))
    first.input_scale = torch.zeros(())
    after = count_macs(calibrated.encoder, torch.rand(1, 3, 16, 16))
    assert after.total == before.total
    assert before.integer - after.integer == TOKENS * first.weight.numel()


class _Tiny(nn.Module):
    """A grouped convolution and a linear of the pooled result."""

    def __init__(self, channels: int, groups: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * groups, channels * groups, kernel, groups=groups, padding=kernel // 2)
        self.head = QuantLinear.from_linear(nn.Linear(channels * groups, 7), QuantScheme())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.conv(x).mean((2, 3)))
        return result


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(5, 9))
def test_convolutions_count_by_groups_kernel_and_place(channels: int, groups: int, kernel: int, size: int) -> None:
    tiny = _Tiny(channels, groups, kernel)
    tiny.head.weight_scale, tiny.head.input_scale = torch.ones(7), torch.ones(())
    width = channels * groups
    found = count_macs(tiny, torch.rand(1, width, size, size))
    assert found == MacCount(total=size * size * width * channels * kernel * kernel + 7 * width, integer=7 * width)


def test_a_quantized_convolution_counts_once_it_is_calibrated() -> None:
    tiny = _Tiny(4, 1, 3)
    tiny.conv = QuantConv2d(tiny.conv, QuantScheme())  # type: ignore[assignment]
    assert count_macs(tiny, torch.rand(1, 4, 5, 5)).integer == 0
    tiny.conv.input.scale = torch.ones(())  # type: ignore[union-attr]
    assert count_macs(tiny, torch.rand(1, 4, 5, 5)).integer == 5 * 5 * 4 * 4 * 9


def test_nothing_to_multiply_is_a_share_of_nothing() -> None:
    assert count_macs(nn.Identity(), torch.rand(1, 3, 4, 4)) == MacCount(total=0, integer=0)
    assert MacCount(total=0, integer=0).integer_share == 0.0
