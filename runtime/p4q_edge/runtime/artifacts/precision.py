"""What is quantized in a model, to how many bits, and whether the hardware computes in these bits."""

from __future__ import annotations

from typing import Literal

import msgspec


class Precision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is quantized, to how many bits, and whether the hardware computes in these bits.

    `executed`: the integer kernels run with this many bits. `carried`: values lie on the grid of this many
    bits, and 8-bit kernels compute with them.

    Attributes:
        attention_bits: of weights and activations in attentions, where they differ from the others; else None.
        quantized_attentions: attentions whose two products are quantized as well.
    """

    weight_bits: int
    activation_bits: int
    execution: Literal["executed", "carried"]
    remainder: Literal["fp16", "fp32"]
    quantized_linears: int
    attention_bits: int | None = None
    quantized_attentions: int = 0

    @property
    def label(self) -> str:
        """Bit widths with the word that says whether the hardware computes in them."""
        return f"{width_label(self.weight_bits, self.activation_bits, self.attention_bits)} {self.execution}"

    @property
    def parts(self) -> str:
        """What is quantized, in words."""
        return quantized_parts(self.quantized_linears, self.quantized_attentions)


def width_label(weight_bits: int, activation_bits: int, attention_bits: int | None = None) -> str:
    """Return `W8A8`, or `W4A4 (attention W8A8)` where attentions have bits of their own."""
    label = f"W{weight_bits}A{activation_bits}"
    own = f"W{attention_bits}A{attention_bits}"
    return label if attention_bits is None or own == label else f"{label} (attention {own})"


def quantized_parts(linears: int, attentions: int) -> str:
    """Return `51 linears`, or `51 linears and the products of 11 attentions`."""
    return f"{linears} linears" + (f" and the products of {attentions} attentions" if attentions else "")
