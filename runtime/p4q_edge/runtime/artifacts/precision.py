"""What is quantized in a model, to how many bits, and whether the hardware computes in these bits."""

from __future__ import annotations

from typing import Literal

import msgspec

from p4q_edge.runtime.choices import NumberFormat, QuantizedFlavour
from p4q_edge.runtime.wording import number_of

FP8_LABEL = "FP8 (E4M3)"
"""What stands for the widths where values are 8-bit floating-point numbers."""

LEAST_MAC_SHARE = 0.5
"""A model with less of its multiply-accumulates quantized is not called by its bit widths alone."""

MAX_BITS = 32


class Precision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is quantized, to how many bits, and whether the hardware computes in these bits.

    `executed`: kernels run with this many bits. `carried`: values lie on the grid of this many bits, and 8-bit kernels
    compute with them; those of FP8 kernels of FP32.

    Attributes:
        attention_bits: of weights and activations in attentions, where they differ from the others; else None.
        weight_block: number of neighbouring weights of the image tower's linears that share a scale, at most: their
            activations are not quantized; else None.
        number_format: `fp8` where linears multiply 8-bit floating-point numbers E4M3, else `int`. Only GPUs execute
            `fp8`; on CPUs products in FP32 carry its values.
        mean_weight_bits: of a weight of the image tower's quantized linears on average, where some of these have more
            than `weight_bits`; else None.
        quantized_attentions: attentions whose two products are quantized as well.
        quantized_convolutions: convolutions that are quantized.
        int8_mac_share: of the image tower's multiply-accumulates, the share that is quantized, 0 to 1; None where it
            was not counted.
        linear_mac_share: `int8_mac_share` where all convolutions compute in float, as on CPUs; None where none is
            quantized.
        in_float: layers of the image tower that stay in high precision so that a limit on the loss of accuracy holds,
            in the order in which they matter for their work.
    """

    weight_bits: int
    activation_bits: int
    execution: Literal["executed", "carried"]
    remainder: Literal["fp16", "fp32", "bf16"]
    quantized_linears: int
    attention_bits: int | None = None
    weight_block: int | None = None
    number_format: NumberFormat = "int"
    mean_weight_bits: float | None = None
    quantized_attentions: int = 0
    quantized_convolutions: int = 0
    int8_mac_share: float | None = None
    linear_mac_share: float | None = None
    in_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        widths = (self.weight_bits, self.activation_bits, self.attention_bits)
        if not all(width is None or 1 <= width <= MAX_BITS for width in widths):
            raise ValueError(f"bits must be from 1 to {MAX_BITS}, got {widths}")
        if self.weight_block is not None and self.weight_block < 1:
            raise ValueError(f"weight_block must be positive, got {self.weight_block}")
        if self.mean_weight_bits is not None and not self.weight_bits <= self.mean_weight_bits <= MAX_BITS:
            raise ValueError(
                f"mean_weight_bits must be from weight_bits to {MAX_BITS}, got {self.mean_weight_bits:g} with "
                f"weight_bits = {self.weight_bits}"
            )
        shares = (self.int8_mac_share, self.linear_mac_share)
        if not all(share is None or 0 <= share <= 1 for share in shares):
            raise ValueError(f"shares of multiply-accumulates must be from 0 to 1, got {shares}")
        counts = (self.quantized_linears, self.quantized_attentions, self.quantized_convolutions)
        if min(counts) < 0:
            raise ValueError(f"numbers of quantized layers must not be negative, got {counts}")

    @property
    def has_forms_on_cpus(self) -> bool:
        """Whether only measuring tells how it is computed fastest on a CPU: with convolutions, INT4 weights or FP8."""
        return self.quantized_convolutions > 0 or self.plan_flavour != "int8"

    @property
    def plan_flavour(self) -> QuantizedFlavour:
        """What plans of it are called beside `fp16`."""
        if self.number_format == "fp8":
            return "fp8"
        return "int8" if self.weight_block is None else "int4"

    def with_float_convolutions(self) -> Precision:
        """Return the precision of an engine that quantizes the same but convolutions."""
        if not self.quantized_convolutions:
            return self
        share = self.linear_mac_share
        return msgspec.structs.replace(self, quantized_convolutions=0, int8_mac_share=share, linear_mac_share=None)

    @property
    def label(self) -> str:
        """Bit widths with the word that says whether the hardware computes in them, and in how little of the work."""
        widths = width_label(self.weight_bits, self.activation_bits, self.attention_bits)
        if self.number_format == "fp8":
            widths = FP8_LABEL
        if self.mean_weight_bits is not None:
            which = "weights of linears" if self.quantized_convolutions else "weights"
            widths = f"{widths} ({which} {self.mean_weight_bits:.2f} bits on average)"
        if self.weight_block is not None:
            widths = f"{widths} (weights in blocks of {self.weight_block})"
        return f"{widths} {self.execution}{small_share(self.int8_mac_share)}"

    @property
    def computed(self) -> str:
        """What computes with the quantized values, in words."""
        if not self.quantized_linears + self.quantized_convolutions:
            return "nothing is quantized"
        if self.number_format == "fp8":
            if self.execution == "executed":
                return "kernels multiply these floating-point numbers of 8 bits"
            return "values lie on this grid, FP32 kernels compute with them"
        if self.weight_block is not None:
            return "kernels read weights of this width, and multiply in floating point"
        if self.execution == "executed":
            return "integer kernels compute with these widths"
        return "values lie on this grid, 8-bit kernels compute with them"

    @property
    def parts(self) -> str:
        """What is quantized, in words."""
        return quantized_parts(
            self.quantized_linears,
            self.quantized_attentions,
            convolutions=self.quantized_convolutions,
            mac_share=self.int8_mac_share,
        )

    @property
    def description(self) -> str:
        """Label and parts; of a model in floating point the label alone."""
        on_demand = f", {number_of(len(self.in_float), 'layer')} in float on demand" if self.in_float else ""
        known = self.quantized_linears + self.quantized_convolutions
        return f"{self.label}, {self.parts}{on_demand}" if known else self.label


def width_label(weight_bits: int, activation_bits: int, attention_bits: int | None = None) -> str:
    """Return `W8A8`, or `W4A4 (attention W8A8)` where attentions have bits of their own."""
    label = f"W{weight_bits}A{activation_bits}"
    own = f"W{attention_bits}A{attention_bits}"
    return label if attention_bits is None or own == label else f"{label} (attention {own})"


def quantized_parts(linears: int, attentions: int, *, convolutions: int = 0, mac_share: float | None = None) -> str:
    """Return `51 linears and the products of 11 attentions (97.1 % of multiply-accumulates)`, or what is known."""
    layers = number_of(linears, "linear") + (f" and {number_of(convolutions, 'convolution')}" if convolutions else "")
    products = f" and the products of {number_of(attentions, 'attention')}" if attentions else ""
    share = "" if mac_share is None else f" ({100 * mac_share:.1f} % of multiply-accumulates)"
    return f"{layers}{products}{share}"


def small_share(mac_share: float | None) -> str:
    """Return ` in 0.1 % of multiply-accumulates` where it is less than `LEAST_MAC_SHARE`, else nothing."""
    if mac_share is None or mac_share >= LEAST_MAC_SHARE:
        return ""
    return f" in {100 * mac_share:.1f} % of multiply-accumulates"
