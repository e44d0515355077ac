"""Quantization: the grid, observers, fake quantization, folds and roundings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.quant import affine
    from p4q_edge.quant.attention import Attention, attentions, quant_products
    from p4q_edge.quant.attention_pool import AttentionPool
    from p4q_edge.quant.attention_products import MAX_TOKENS, AttentionProducts, fuses_in_int8, softmax_scale
    from p4q_edge.quant.channel_folds import correct_biases, fold_channels
    from p4q_edge.quant.conv import (
        QuantConv2d,
        forget_restored_weights,
        quant_convs,
        running_as_cpu_graph,
        tensor_grids,
    )
    from p4q_edge.quant.conv_swap import GRIDS, fit_convolutions, fix_conv_scales, swap_convolutions
    from p4q_edge.quant.dataflow import Flow, kind_of, module_of, readers, source, trace_flow
    from p4q_edge.quant.learned_scales import learn_scales
    from p4q_edge.quant.least_squares import Moments, Seen, correct_affine, correct_bias, fitted_target, paired_pass
    from p4q_edge.quant.linear import Phase, QuantLinear, memory_of, quant_linears, running_in, set_phase
    from p4q_edge.quant.macs import count_macs, macs_by_module
    from p4q_edge.quant.mixed_bits import rounding_losses, spread_bits, weight_sensitivity
    from p4q_edge.quant.observers import forget_magnitudes
    from p4q_edge.quant.placement import GridPoint, choose_convolutions, choose_grids, may_be_quantized
    from p4q_edge.quant.reconstruction import reconstruct
    from p4q_edge.quant.rotation import rotate_streams
    from p4q_edge.quant.rounding import choose_rounding
    from p4q_edge.quant.scheme import ConvolutionChoice, ObserverName, QuantScheme, RoundingName
    from p4q_edge.quant.search import STRENGTHS, Ranges, Rows, activation_readers, choose_input
    from p4q_edge.quant.sensitivity import OutputWeights, output_weights
    from p4q_edge.quant.swap import quantize_modules, replace_module

__all__ = [
    "GRIDS",
    "MAX_TOKENS",
    "STRENGTHS",
    "Attention",
    "AttentionPool",
    "AttentionProducts",
    "ConvolutionChoice",
    "Flow",
    "GridPoint",
    "Moments",
    "ObserverName",
    "OutputWeights",
    "Phase",
    "QuantConv2d",
    "QuantLinear",
    "QuantScheme",
    "Ranges",
    "RoundingName",
    "Rows",
    "Seen",
    "activation_readers",
    "affine",
    "attentions",
    "choose_convolutions",
    "choose_grids",
    "choose_input",
    "choose_rounding",
    "correct_affine",
    "correct_bias",
    "correct_biases",
    "count_macs",
    "fit_convolutions",
    "fitted_target",
    "fix_conv_scales",
    "fold_channels",
    "forget_magnitudes",
    "forget_restored_weights",
    "fuses_in_int8",
    "kind_of",
    "learn_scales",
    "macs_by_module",
    "may_be_quantized",
    "memory_of",
    "module_of",
    "output_weights",
    "paired_pass",
    "quant_convs",
    "quant_linears",
    "quant_products",
    "quantize_modules",
    "readers",
    "reconstruct",
    "replace_module",
    "rotate_streams",
    "rounding_losses",
    "running_as_cpu_graph",
    "running_in",
    "set_phase",
    "softmax_scale",
    "source",
    "spread_bits",
    "swap_convolutions",
    "tensor_grids",
    "trace_flow",
    "weight_sensitivity",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "attention": (
                "Attention",
                "attentions",
                "quant_products",
            ),
            "attention_pool": ("AttentionPool",),
            "attention_products": (
                "AttentionProducts",
                "MAX_TOKENS",
                "fuses_in_int8",
                "softmax_scale",
            ),
            "channel_folds": (
                "correct_biases",
                "fold_channels",
            ),
            "conv": (
                "QuantConv2d",
                "forget_restored_weights",
                "quant_convs",
                "running_as_cpu_graph",
                "tensor_grids",
            ),
            "conv_swap": (
                "GRIDS",
                "fit_convolutions",
                "fix_conv_scales",
                "swap_convolutions",
            ),
            "dataflow": (
                "Flow",
                "kind_of",
                "module_of",
                "readers",
                "source",
                "trace_flow",
            ),
            "learned_scales": ("learn_scales",),
            "least_squares": (
                "Moments",
                "Seen",
                "correct_affine",
                "correct_bias",
                "fitted_target",
                "paired_pass",
            ),
            "linear": (
                "Phase",
                "QuantLinear",
                "memory_of",
                "quant_linears",
                "running_in",
                "set_phase",
            ),
            "macs": (
                "count_macs",
                "macs_by_module",
            ),
            "mixed_bits": (
                "rounding_losses",
                "spread_bits",
                "weight_sensitivity",
            ),
            "observers": ("forget_magnitudes",),
            "placement": (
                "GridPoint",
                "choose_convolutions",
                "choose_grids",
                "may_be_quantized",
            ),
            "reconstruction": ("reconstruct",),
            "rotation": ("rotate_streams",),
            "rounding": ("choose_rounding",),
            "scheme": (
                "ConvolutionChoice",
                "ObserverName",
                "QuantScheme",
                "RoundingName",
            ),
            "search": (
                "Ranges",
                "Rows",
                "STRENGTHS",
                "activation_readers",
                "choose_input",
            ),
            "sensitivity": (
                "OutputWeights",
                "output_weights",
            ),
            "swap": (
                "quantize_modules",
                "replace_module",
            ),
        },
    )
