"""Quantization: the grid, observers, fake quantization, folds and roundings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.quant import affine
    from p4q_edge.quant.attention import Attention, attentions, quant_products
    from p4q_edge.quant.attention_products import MAX_TOKENS, AttentionProducts, fuses_in_int8, softmax_scale
    from p4q_edge.quant.channel_folds import correct_biases, fold_channels
    from p4q_edge.quant.learned_scales import learn_scales
    from p4q_edge.quant.least_squares import Moments, correct_affine, correct_bias, paired_pass
    from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in, set_phase
    from p4q_edge.quant.macs import count_macs, macs_by_module
    from p4q_edge.quant.rounding import choose_rounding
    from p4q_edge.quant.scheme import ObserverName, QuantScheme, RoundingName
    from p4q_edge.quant.swap import quantize_modules, replace_module

__all__ = [
    "MAX_TOKENS",
    "Attention",
    "AttentionProducts",
    "Moments",
    "ObserverName",
    "Phase",
    "QuantLinear",
    "QuantScheme",
    "RoundingName",
    "affine",
    "attentions",
    "choose_rounding",
    "correct_affine",
    "correct_bias",
    "correct_biases",
    "count_macs",
    "fold_channels",
    "fuses_in_int8",
    "learn_scales",
    "macs_by_module",
    "paired_pass",
    "quant_linears",
    "quant_products",
    "quantize_modules",
    "replace_module",
    "running_in",
    "set_phase",
    "softmax_scale",
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
            "learned_scales": ("learn_scales",),
            "least_squares": (
                "Moments",
                "correct_affine",
                "correct_bias",
                "paired_pass",
            ),
            "linear": (
                "Phase",
                "QuantLinear",
                "quant_linears",
                "running_in",
                "set_phase",
            ),
            "macs": (
                "count_macs",
                "macs_by_module",
            ),
            "rounding": ("choose_rounding",),
            "scheme": (
                "ObserverName",
                "QuantScheme",
                "RoundingName",
            ),
            "swap": (
                "quantize_modules",
                "replace_module",
            ),
        },
    )
