"""The arithmetic of weights in blocks: sizes, scales, integers and roundings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.quant import QuantLinear, QuantScheme, affine
from p4q_edge.quant.least_squares import Moments
from p4q_edge.quant.linear import Phase
from p4q_edge.quant.rounding import choose_rounding

BLOCKS = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32, weight_observer="minmax")


def linear_of(rows: int, inputs: int, *, seed: int, scheme: QuantScheme = BLOCKS) -> QuantLinear:
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(2 * torch.randn(rows, inputs // 16, generator=generator)).repeat_interleave(16, dim=1)
    linear = QuantLinear(torch.randn(rows, inputs, generator=generator) * size, torch.zeros(rows), scheme)
    linear.scale_weight()
    return linear.requires_grad_(False)


@given(inputs=st.integers(1, 10_000), wanted=st.sampled_from((32, 64, 128)))
def test_blocks_are_whole_and_at_least_two(inputs: int, wanted: int) -> None:
    block = affine.block_for(inputs, wanted)
    able = [size for size in (16, 32, 64, 128) if size <= wanted and inputs % size == 0 and inputs >= 2 * size]
    assert block == (max(able) if able else None)


@given(rows=st.integers(1, 5), blocks=st.integers(2, 6), seed=st.integers(0, 99))
def test_integers_and_scales_restore_within_half_a_step_of_the_block(rows: int, blocks: int, seed: int) -> None:
    linear = linear_of(rows, 16 * blocks, seed=seed)
    assert linear.block is not None
    scale, q = linear.weight_scale, linear.integer_weight()
    assert scale.shape == (rows, linear.weight.shape[1] // linear.block)
    assert int(q.abs().max()) <= 7
    steps = scale.repeat_interleave(linear.block, dim=1)
    assert torch.equal(linear.quantized_weight(), q.float() * steps)
    # A scale of 11 digits may end a little below the largest weight.
    assert bool(((linear.quantized_weight() - linear.weight).abs() <= 0.505 * steps).all())


@given(rows=st.integers(1, 5), blocks=st.integers(2, 6), seed=st.integers(0, 99))
def test_scales_of_blocks_are_those_of_the_blocks_alone(rows: int, blocks: int, seed: int) -> None:
    linear = linear_of(rows, 16 * blocks, seed=seed)
    assert linear.block is not None
    alone = linear.weight.detach().view(-1, linear.block).abs().amax(1) / 7
    expected = affine.within_span(affine.representable_scale(alone).view(rows, -1))
    assert torch.equal(linear.weight_scale, expected)


@given(rows=st.integers(1, 4), blocks=st.integers(2, 5), seed=st.integers(0, 99))
def test_scales_of_a_row_can_all_be_normal_numbers_of_fp16(rows: int, blocks: int, seed: int) -> None:
    scale = linear_of(rows, 16 * blocks, seed=seed).weight_scale * 2.0**-20
    powers = torch.exp2(torch.ceil(torch.log2(affine.SMALLEST_NORMAL_FP16 / scale.amin(1, keepdim=True))))
    lifted = scale * powers
    assert bool((lifted >= affine.SMALLEST_NORMAL_FP16).all())
    assert torch.equal(lifted.half().float(), lifted)


def test_a_block_of_zeros_has_a_scale_that_fp16_holds_beside_the_others() -> None:
    weight = torch.ones(1, 64)
    weight[0, :32] = 0.0
    linear = QuantLinear(weight, None, BLOCKS)
    linear.scale_weight()
    assert linear.weight_scale[0, 0] == linear.weight_scale[0, 1] / affine.BLOCK_SPAN


def test_inputs_are_left_as_they_are() -> None:
    linear = linear_of(3, 64, seed=0)
    linear.input_scale = torch.ones(())
    linear.phase = Phase.QUANTIZED
    x = torch.randn(5, 64)
    assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.quantized_weight(), linear.bias))


def test_a_linear_without_whole_blocks_stays_in_float() -> None:
    linear = QuantLinear(torch.randn(4, 40), None, BLOCKS)
    linear.phase = Phase.QUANTIZED
    x = torch.randn(2, 40)
    assert linear.in_float
    assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.weight))


def test_each_block_is_searched_by_its_own_inputs() -> None:
    """The inputs that count decide the clip range of their block, and of no other."""
    generator = torch.Generator().manual_seed(3)
    scheme = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32, weight_observer="search")
    linear = QuantLinear(torch.randn(6, 64, generator=generator), None, scheme)
    importance = torch.ones(64)
    linear.scale_weight(importance=importance)
    plain = linear.weight_scale.clone()
    importance[:32] = torch.rand(32, generator=generator) ** 8
    linear.scale_weight(importance=importance)
    assert torch.equal(linear.weight_scale[:, 1], plain[:, 1])
    assert not torch.equal(linear.weight_scale[:, 0], plain[:, 0])


@pytest.mark.parametrize("how", ["adaround", "descent"])
def test_roundings_by_output_lower_the_error_and_keep_the_grid(how: str) -> None:
    linear = linear_of(8, 64, seed=1)
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(64, 64, generator=generator)
    x = torch.randn(512, 64, generator=generator) @ mixed
    moments = Moments.of(x, x @ linear.weight.detach().T)
    before, scale = moments.error(linear.quantized_weight()), linear.weight_scale.clone()
    choose_rounding(linear, moments, how)  # type: ignore[arg-type]
    after = moments.error(linear.quantized_weight())
    assert bool((after <= before).all())
    assert float((after / before).median()) < 0.9
    assert torch.equal(linear.weight_scale, scale)
    assert linear.integers is not None
    assert int(linear.integers.abs().max()) <= 7


def test_one_scale_a_row_is_descended_as_equal_scales_of_blocks() -> None:
    """The two forms of a grid give the same integers where they are the same grid."""
    rows = QuantScheme(weight_bits=4, weight_observer="minmax")
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 64, generator=generator)
    found = []
    for scheme in (rows, BLOCKS):
        linear = QuantLinear(weight, None, scheme).requires_grad_(False)
        linear.scale_weight()
        scale = torch.full((5,), 0.25)
        linear.set_integers(None, scale if linear.block is None else scale[:, None].expand(5, 2).contiguous())
        x = torch.randn(256, 64, generator=torch.Generator().manual_seed(5)).cumsum(1)
        choose_rounding(linear, Moments.of(x, x @ weight.T), "descent")
        found.append(linear.integer_weight().numpy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"activation_bits": 16}, "set weight_bits = 4 and weight_block = 128 too"),
        ({"weight_block": 128}, "got weight_bits = 8 and activation_bits = 8"),
        ({"weight_bits": 4, "activation_bits": 16, "weight_block": 48}, "must be one of 32, 64, 128, got 48"),
        ({"activation_bits": 12}, "activation_bits must be between 2 and 8"),
        (
            {"weight_bits": 4, "activation_bits": 16, "weight_block": 64, "attention_bits": 8, "scale_epochs": 2},
            "attention_bits, scale_epochs cannot be had beside weight_block",
        ),
    ],
)
def test_what_cannot_be_had_together_is_refused(keys: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        QuantScheme(**keys)  # type: ignore[arg-type]
