"""QuantScheme: what is quantized, to how many bits, and how ranges are found."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from p4q_edge.runtime.artifacts import FP8_LABEL, width_label
from p4q_edge.runtime.choices import NumberFormat

ObserverName = Literal["minmax", "percentile", "mse", "search"]
ConvolutionChoice = Literal["auto", "off"]
RoundingName = Literal["nearest", "adaround", "descent"]

WIDEST_BITS = 7
"""Most bits of a weight where widths differ: at 7 the rounding of a weight costs a 64th of what it does at 4, and every
kernel for CPUs multiplies such weights without overflow."""

FLOAT_BITS = 16
"""Bits of activations that are not quantized."""
BLOCKS = (32, 64, 128)
"""Numbers of neighbouring inputs that may share a scale."""


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Signed symmetric quantization of linears and convolutions: weights per output channel, activations per tensor.

    Attributes:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8; or 16, where weights in blocks are multiplied by FP16 activations, which are not
            quantized.
        weight_block: number of neighbouring inputs of a row of a linear that share a scale: 128, 64 or 32, with 4 bits,
            in FP16. A linear whose inputs are no whole number of such blocks, or only one, takes half, down to 16.
            Convolutions then stay in high precision. None: one scale for each row.
        number_format: `int`, or `fp8`: weights and inputs of linears as floating-point numbers E4M3 of 8 bits, which
            GPUs of compute capability 8.9 and later multiply. Ranges are then maxima, since steps grow with the value
            and nothing has to be cut off, and convolutions stay in high precision.
        attention_bits: 2 to 8, of weights and activations of the linears of attentions and of the tensors that
            attentions multiply; None: as all others.
        mean_weight_bits: of the image tower's linears, those whose weights cost most for their size get more than
            `weight_bits`, up to 7, as long as a weight has at most this many on average; chosen by gradients on the
            calibration images, before roundings are fitted. None: all weights have `weight_bits`. Where
            `max_cosine_loss` then puts layers of few bits back into float, those that are left have more on average.
        quantize_attention: quantize the products of attentions too, where TensorRT fuses them in INT8.
        observer: how the clip range of an activation is chosen: its maximum, a percentile of its absolute values,
            the range with the least mean squared quantization error (OMSE), or by a search for the least error of the
            linear's output on images that the range was not taken from, with the rows that count most for the model's
            output, such as the class token, counting most. Where no linear's output tells (attention products, the
            text tower), `search` is `mse`.
        percentile: used by the percentile observer, in percent.
        weight_observer: the same choice for weights, per output channel.
        activation_gain: let the search put a factor on each channel between an activation function and the linear
            that reads it, with the inverse in its weight, and a shift that moves a range which ends just below zero, as
            GELU's, onto both halves of the grid; a multiplication and an addition that join the function's kernel.
        fold_norm: equalize the channels between a LayerNorm and the linears that read it (exact fold).
        fold_value: equalize the channels between attention values and the output projection (exact fold).
        rotation: hold a residual stream in a rotated basis that spreads outliers over all channels (exact fold, where
            the model allows it; see `p4q_edge.quant.rotation`). None: with weights of 4 bits or fewer, as at 6 and
            8 it neither gained nor lost on a ViT-S/14 of real weights.
        fold_strength: exponent t of the channel ratio r**t; 1 equalizes fully, 0 not at all.
        headroom: factor on every activation's clip range, of a searched one at 8 bits; images that were not seen in
            calibration exceed the ranges of those that were, the more so the fewer those are and the stronger the fold.
        bias_correction: absorb the mean output error of each quantized linear into its bias.
        weight_rounding: each weight to its nearest integer; or, by the error of the linear's output, up or down
            (AdaRound) or to any integer (coordinate descent), of convolutions of one group too. This and the next two
            are fitted to the images in the image tower alone, and the next two to linears alone; biases of convolutions
            are always corrected.
        affine_correction: fold the least-squares factor and offset of each output channel into scale and bias.
        scale_epochs: passes over the images in which the scales are learned (LSQ); 0 keeps the calibrated ones.
        reconstruction_epochs: passes over parts of the images in which the integers, scales and biases of all linears
            are learned together towards the float tower (see `p4q_edge.quant.reconstruction`); 0 keeps those that were
            fitted linear by linear.
        convolutions: quantize those that have INT8 kernels (`auto`; see `p4q_edge.quant.placement`), or none (`off`).
        depthwise: quantize convolutions of one channel a group too, beside quantized ones; off, as they cost
            EfficientNet-Lite2 most of what it loses (mean cosine of logits .9959 against .9984, n = 128 photographs).
        stem: quantize the convolution that reads the image too.
        keep_float: glob patterns of module paths that stay in high precision.
        max_cosine_loss: limit of one minus the mean cosine between the embeddings of the quantized and the float image
            tower on the calibration images; the layers that cost most accuracy for their work stay in high precision
            until it holds. None: no limit.

    Source: P4Q, arXiv:2409.17634, section 3; RepQ-ViT, arXiv:2212.08254 (reparameterized LayerNorm ranges), here as
    an exact fold onto symmetric per-tensor ranges.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_block: int | None = None
    number_format: NumberFormat = "int"
    attention_bits: int | None = None
    mean_weight_bits: float | None = None
    quantize_attention: bool = False
    observer: ObserverName = "search"
    percentile: float = 99.99
    weight_observer: ObserverName = "search"
    activation_gain: bool = True
    fold_norm: bool = True
    fold_value: bool = True
    rotation: bool | None = None
    fold_strength: float = 0.5
    headroom: float = 1.15
    bias_correction: bool = True
    weight_rounding: RoundingName = "nearest"
    affine_correction: bool = False
    scale_epochs: int = 0
    reconstruction_epochs: int = 0
    convolutions: ConvolutionChoice = "auto"
    depthwise: bool = False
    stem: bool = False
    keep_float: tuple[str, ...] = ()
    max_cosine_loss: float | None = None

    def __post_init__(self) -> None:
        self._check_fp8()
        check_bits(self.weight_bits, name="weight_bits")
        if self.quantizes_inputs:
            check_bits(self.activation_bits, name="activation_bits")
        if self.attention_bits is not None:
            check_bits(self.attention_bits, name="attention_bits")
        check_mean_bits(self.weight_bits, self.attention_bits, self.mean_weight_bits)
        self._check_blocks()
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be in (50, 100], got {self.percentile}")
        if not 1.0 <= self.headroom <= 4.0:
            raise ValueError(f"headroom must be in [1, 4], got {self.headroom}")
        if not 0.0 <= self.fold_strength <= 1.0:
            raise ValueError(f"fold_strength must be in [0, 1], got {self.fold_strength}")
        if self.max_cosine_loss is not None and not 0.0 < self.max_cosine_loss < 2.0:
            raise ValueError(f"max_cosine_loss must be in (0, 2), got {self.max_cosine_loss}")
        for name in ("scale_epochs", "reconstruction_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def _check_blocks(self) -> None:
        if self.weight_block is None:
            if not self.quantizes_inputs:
                raise ValueError(
                    f"activation_bits = {FLOAT_BITS} leaves activations as they are, beside weights in blocks: "
                    "set weight_bits = 4 and weight_block = 128 too"
                )
            return
        if self.weight_block not in BLOCKS:
            raise ValueError(f"weight_block must be one of {', '.join(map(str, BLOCKS))}, got {self.weight_block}")
        if (self.weight_bits, self.activation_bits) != (4, FLOAT_BITS):
            raise ValueError(
                f"weight_block = {self.weight_block} is of weights of 4 bits beside activations of {FLOAT_BITS}, got "
                f"weight_bits = {self.weight_bits} and activation_bits = {self.activation_bits}"
            )
        asked = {
            "attention_bits": self.attention_bits is not None,
            "mean_weight_bits": self.mean_weight_bits is not None,
            "quantize_attention": self.quantize_attention,
            "affine_correction": self.affine_correction,
            "scale_epochs": self.scale_epochs > 0,
            "reconstruction_epochs": self.reconstruction_epochs > 0,
        }
        if given := [name for name, is_asked in asked.items() if is_asked]:
            raise ValueError(
                f"{', '.join(given)} cannot be had beside weight_block, where no activation is quantized and weights "
                "have a scale a block; leave it out"
            )

    def _check_fp8(self) -> None:
        if not self.in_fp8:
            return
        if (self.weight_bits, self.activation_bits, self.weight_block) != (8, 8, None):
            raise ValueError(
                "number_format = 'fp8' is of weights and activations of 8 bits without blocks, got weight_bits = "
                f"{self.weight_bits}, activation_bits = {self.activation_bits} and weight_block = {self.weight_block}"
            )
        if self.quantize_attention:
            raise ValueError(
                "quantize_attention cannot be had beside number_format = 'fp8': NVIDIA's compiler takes attentions "
                "with FP8 products apart, into more kernels than it makes without; leave it out"
            )
        asked = {
            "attention_bits": self.attention_bits is not None,
            "mean_weight_bits": self.mean_weight_bits is not None,
            "weight_rounding": self.weight_rounding != "nearest",
            "affine_correction": self.affine_correction,
            "scale_epochs": self.scale_epochs > 0,
            "reconstruction_epochs": self.reconstruction_epochs > 0,
        }
        if given := [name for name, is_asked in asked.items() if is_asked]:
            raise ValueError(
                f"{', '.join(given)} cannot be had beside number_format = 'fp8': it is of integer grids; leave it out"
            )

    @property
    def in_fp8(self) -> bool:
        """Whether linears are quantized to E4M3 numbers, not to integers."""
        return self.number_format == "fp8"

    @property
    def quantizes_inputs(self) -> bool:
        """Whether activations are quantized, not only weights."""
        return self.activation_bits != FLOAT_BITS

    @property
    def quantizes_convolutions(self) -> bool:
        """Whether convolutions that have INT8 kernels are quantized."""
        return self.convolutions != "off" and self.quantizes_inputs and not self.in_fp8

    @property
    def searches_inputs(self) -> bool:
        """Whether clip ranges of linears' inputs are chosen by the error of the outputs."""
        return self.observer == "search" and self.quantizes_inputs and not self.in_fp8

    @property
    def fits_outputs(self) -> bool:
        """Whether anything is chosen by the error of the linears' outputs."""
        if self.in_fp8:
            return self.bias_correction
        searches = "search" in (self.observer, self.weight_observer)
        return searches or self.weight_rounding != "nearest" or self.affine_correction

    @property
    def rotates(self) -> bool:
        """Whether residual streams are rotated."""
        return self.weight_bits <= 4 if self.rotation is None else self.rotation

    @property
    def execution(self) -> Literal["executed", "carried"]:
        """Whether kernels of these widths run, or 8-bit kernels carry the narrower grid."""
        if self.weight_block is not None:
            return "executed"
        widths = {self.weight_bits, self.activation_bits, self.attention_bits or 8}
        return "executed" if widths == {8} else "carried"

    @property
    def label(self) -> str:
        """Short name such as `W8A8`, or `W4A4 (attention W8A8)` where attentions have bits of their own."""
        if self.in_fp8:
            return FP8_LABEL
        if self.mean_weight_bits is not None:
            plain = width_label(self.weight_bits, self.activation_bits)
            return f"{plain} (mean_weight_bits = {self.mean_weight_bits:g})"
        return width_label(self.weight_bits, self.activation_bits, self.attention_bits)

    def for_attention(self) -> "QuantScheme":
        """Return the scheme of the linears and products of attentions."""
        bits = self.attention_bits
        return self if bits is None else replace(self, weight_bits=bits, activation_bits=bits)

    def keeps_float(self, module_path: str) -> bool:
        """Return whether the module at this dotted path stays in high precision."""
        return any(fnmatchcase(module_path, pattern) for pattern in self.keep_float)


def check_bits(bits: int, *, name: str = "bits") -> None:
    """Check the number of bits of an integer grid, which errors call `name`.

    Raises:
        ValueError: it is not between 2 and 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{name} must be between 2 and 8 (integers travel in int8), got {bits}")


def check_mean_bits(weight_bits: int, attention_bits: int | None, mean_weight_bits: float | None) -> None:
    """Check that a mean of bits can be spread over weights.

    Raises:
        ValueError: the mean is not between `weight_bits` and 7, or attentions have bits of their own.
    """
    if mean_weight_bits is None:
        return
    if attention_bits is not None:
        raise ValueError("attention_bits fixes the widths that mean_weight_bits is there to choose; leave one out")
    if not weight_bits < mean_weight_bits < WIDEST_BITS:
        raise ValueError(
            f"mean_weight_bits must be above weight_bits and below {WIDEST_BITS}, got {mean_weight_bits:g} with "
            f"weight_bits = {weight_bits}"
        )
