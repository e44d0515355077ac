"""Ranges at their edges: dead channels, outliers of weights, scales that FP16 cannot hold."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from p4q_edge.graph.passes.rescale_small_weights import lift
from p4q_edge.quant import affine
from p4q_edge.quant.channel_folds import DEAD_CHANNEL, ChannelFold
from p4q_edge.quant.observers import ChannelRange, weight_scale


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_dead_channel_gets_no_endless_gain(strength: float) -> None:
    observed = ChannelRange()
    observed.observe(torch.tensor([[-1.0, 3.0, 0.5], [1.0, 5.0, 0.5]]))  # the last never moves
    fold = ChannelFold.from_range(observed, strength)
    assert torch.isfinite(fold.ratio).all()
    # A thousandth of the mean half range, and no less: 1 / ratio is what the fold multiplies the channel by.
    assert float(fold.ratio[2]) == pytest.approx(DEAD_CHANNEL**strength, rel=2e-2)
    assert torch.equal(fold.ratio[:2], fold.ratio[:1].expand(2))


def test_channels_that_are_all_dead_keep_their_values_finite() -> None:
    observed = ChannelRange()
    observed.observe(torch.zeros(2, 3))
    assert torch.isfinite(ChannelFold.from_range(observed, 1.0).ratio).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_clip_of_a_weight_is_searched_far_below_its_largest_value(bits: int) -> None:
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * 0.01
    weight[:, 0] = 0.06  # beyond all others; at 4 bits a step that covers it wastes the grid
    quant_min, quant_max = affine.weight_range(bits)
    widest = weight_scale(weight, bits=bits, observer="minmax")
    found = weight_scale(weight, bits=bits, observer="mse")

    def error(scale: torch.Tensor) -> torch.Tensor:
        restored = affine.dequantize(affine.quantize(weight, scale[:, None], quant_min, quant_max), scale[:, None])
        return (restored - weight).square().sum(1)

    assert (error(found) <= error(widest)).all()
    if bits == 4:
        assert (found < 0.9 * widest).all()
        assert (error(found) < 0.9 * error(widest)).all()
        assert (error(found) < 0.95 * error(0.98 * widest)).all()


@pytest.mark.parametrize("scale", [65_520.0, 1e6, 3e38])
def test_a_scale_beyond_fp16_stays_what_it_is(scale: float) -> None:
    assert affine.representable_scale(torch.tensor(scale)).item() == pytest.approx(scale, rel=1e-7)
    assert affine.representable_scale(torch.tensor(65_504.0)).item() == 65_504.0


@given(st.floats(2.0**-24, 65_504.0))
def test_fp16_holds_every_scale_once_it_is_lifted(wanted: float) -> None:
    scale = affine.representable_scale(torch.tensor([wanted]))
    assert float(scale) == pytest.approx(wanted, rel=2.0**-11)
    assert torch.equal(affine.representable_scale(scale), scale)
    lifted = scale.numpy() * lift(scale.numpy())
    assert lifted.astype(np.float16).astype(np.float32) == lifted
