"""How far a fake-quantized module differs from itself when nothing but roundings of its sums differ."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from p4q_edge.graph.parity import GraphOutputs
from p4q_edge.graph.proof.arithmetic import (
    HALF_STEP,
    Bfloat16Remainder,
    Float64Sums,
    HalfPrecision,
    PermutedSums,
    ScaledInput,
)
from p4q_edge.quant import Phase, QuantConv2d, QuantLinear, attentions, quant_convs, quant_linears, running_in
from p4q_edge.runtime.engines.onnxruntime import corrected_bias, narrowed
from p4q_edge.runtime.stage import OUTPUT_NAMES
from p4q_edge.runtime.statistics import NoiseFloor, bootstrap_quantile, cosine_rows

Running = Callable[[], AbstractContextManager[None]]

Arithmetic = tuple[TorchFunctionMode, ...]
"""What a module runs in, the outermost first."""

_FINE: tuple[Callable[[], Arithmetic], ...] = (
    lambda: (Float64Sums(),),
    lambda: (PermutedSums(0),),
    lambda: (PermutedSums(1),),
    lambda: (ScaledInput(1 + 1e-6),),
    lambda: (ScaledInput(1 - 1e-6),),
)
_HALF: tuple[Callable[[], Arithmetic], ...] = (
    lambda: (HalfPrecision(),),
    lambda: (PermutedSums(0), HalfPrecision()),
    lambda: (PermutedSums(1), HalfPrecision()),
    lambda: (ScaledInput(1 + HALF_STEP), HalfPrecision()),
    lambda: (ScaledInput(1 - HALF_STEP), HalfPrecision()),
)
"""Several, since single images are far more sensitive than the rest, and only where one rounding of theirs goes the
other way: in one of 100 sets of photographs one run alone missed an image that moved 5.7 times as far in the graph."""
_SEVEN_BIT: tuple[Callable[[], Arithmetic], ...] = (
    lambda: (),
    lambda: (PermutedSums(0),),
    lambda: (PermutedSums(1),),
    lambda: (ScaledInput(1 + 1e-6),),
)
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What the runs of one module differ by.

    Attributes:
        losses: 1 - cosine to the plain run by output, (runs, n) each.
        shifts: (runs, n): how far the lead of the best class over any other one moves, in units of cosine.
    """

    losses: Mapping[str, NDArray[np.float64]]
    shifts: NDArray[np.float64]

    def worst(self, output: str) -> float:
        """Return the largest loss of an output over runs and images; infinite where a run is not finite."""
        largest = float(self.losses[output].max(initial=0.0))
        return largest if np.isfinite(largest) else float("inf")

    def and_(self, other: "Noise") -> "Noise":
        """Return the runs of both."""
        losses = {name: np.concatenate([rows, other.losses[name]]) for name, rows in self.losses.items()}
        return Noise(losses=losses, shifts=np.concatenate([self.shifts, other.shifts]))

    def floor(self, typical: "Noise") -> NoiseFloor | None:
        """Return what a bundle records: the worst case of these runs, the median of the `typical` ones.

        None where a run is not finite.
        """
        medians = [
            bootstrap_quantile(row, 0.5, generator=np.random.default_rng(0)).high
            for row in typical.losses["embedding"]
            if np.isfinite(row).all()
        ]
        worst, margin = self.worst("embedding"), float(np.nan_to_num(self.shifts, nan=np.inf).max(initial=0.0))
        if not np.isfinite([worst, margin]).all():
            return None
        return NoiseFloor(worst_loss=worst, median_loss=max(medians, default=0.0), margin=margin)


def run_module(model: nn.Module, images: NDArray[np.uint8], arithmetic: Arithmetic = ()) -> GraphOutputs:
    """Return the outputs of a module in the phase it is in, by name, on uint8 (n, 3, H, W)."""
    with torch.inference_mode(), ExitStack() as modes:
        for mode in arithmetic:
            modes.enter_context(mode)
        parts = [model(torch.from_numpy(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
    columns = zip(*parts, strict=True)
    return {name: torch.cat(column).float().numpy() for name, column in zip(OUTPUT_NAMES, columns, strict=True)}


def difference(reference: GraphOutputs, *runs: GraphOutputs, logit_scale: float) -> Noise:
    """Return what runs differ by from a reference on the same images."""
    losses = {
        name: np.stack([1.0 - cosine_rows(rows, run[name]) for run in runs]).clip(0.0)
        for name, rows in reference.items()
    }
    best = reference["logits"].argmax(axis=1)[:, None]

    def moved(run: GraphOutputs) -> NDArray[np.float64]:
        shift = run["logits"].astype(np.float64) - reference["logits"]
        return np.asarray(np.abs(np.take_along_axis(shift, best, axis=1) - shift).max(axis=1) / logit_scale)

    return Noise(losses=losses, shifts=np.stack([moved(run) for run in runs]))


@dataclass(frozen=True, kw_only=True)
class ModuleRuns:
    """A quantized module and what it differs by from itself.

    Attributes:
        reference: its outputs.
        fine: float32 sums in other orders, in float64, and inputs that differ by a millionth.
        half: everything but the integers in FP16; plainly, with sums in other orders, with pixels rounded otherwise.
        seven_bit: weights of 7 bits.
        unquantized: no activation on a grid.
    """

    reference: GraphOutputs
    fine: Noise
    half: Noise
    seven_bit: Noise
    unquantized: Noise

    @property
    def on_cpu(self) -> Noise:
        """What an engine in float32 may do.

        In a shallow model few roundings go the other way there, and FP16 shows what one of them leads to.
        """
        return self.fine.and_(self.half)


def run_quantized(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    running: Running,
    logit_scale: float,
    narrow: Collection[str] = (),
) -> ModuleRuns:
    """Run a module in its phase on uint8 (n, 3, H, W), plainly and in every other arithmetic.

    `narrow` are the paths of convolutions whose weights get 7 bits with those of linears.
    """
    with running():
        reference = run_module(model, images)

        def noise(arithmetics: tuple[Callable[[], Arithmetic], ...]) -> Noise:
            runs = [run_module(model, images, make()) for make in arithmetics]
            return difference(reference, *runs, logit_scale=logit_scale)

        fine, half = noise(_FINE), noise(_HALF)
        with weights_of_seven_bits(model, narrow=narrow):
            coarse = noise(_SEVEN_BIT)
    with running_in(model, Phase.WEIGHTS):
        unquantized = difference(reference, run_module(model, images), logit_scale=logit_scale)
    return ModuleRuns(reference=reference, fine=fine, half=half, seven_bit=coarse, unquantized=unquantized)


def bfloat16_noise(
    model: nn.Module, images: NDArray[np.uint8], reference: GraphOutputs, *, running: Running, logit_scale: float
) -> Noise:
    """Return what a module in its phase differs by where all but its integers is in bfloat16, (3, n) losses.

    Pixels are whole numbers, which bfloat16 holds as they are, so that they are not scaled as for FP16: that would move
    all of an image alike, and by more than rounding does.

    Args:
        model: the module.
        images: uint8 (n, 3, H, W).
        reference: its outputs for them, run plainly.
        running: puts it into its phase.
        logit_scale: factor between cosines and logits.
    """
    with running():
        layers: tuple[QuantLinear | QuantConv2d, ...] = (*quant_linears(model).values(), *quant_convs(model).values())
        integers = [
            layer for layer in layers if layer.phase is Phase.QUANTIZED and layer.calibrated and layer.sums_integers
        ]
        products = [
            attention.products
            for attention in attentions(model).values()
            if attention.phase is Phase.QUANTIZED and attention.products is not None
        ]
        orders: tuple[Arithmetic, ...] = ((), (PermutedSums(0),), (PermutedSums(1),))
        runs = [run_module(model, images, (*order, Bfloat16Remainder(integers, products))) for order in orders]
    return difference(reference, *runs, logit_scale=logit_scale)


@contextmanager
def weights_of_seven_bits(model: nn.Module, *, narrow: Collection[str] = ()) -> Iterator[None]:
    """Run a module with the weights of the CPU profile `fast`, and the biases that it has beside them.

    Args:
        model: the module.
        narrow: paths of convolutions whose weights are narrowed too, as in `fast-convolutions`.
    """
    # No CPU narrows weights in blocks or in FP8: their products are no sums of integers.
    linears = [linear for linear in quant_linears(model).values() if linear.calibrated and linear.sums_integers]
    convs = [conv for path, conv in quant_convs(model).items() if path in narrow]
    layers: list[QuantLinear | QuantConv2d] = [*linears, *convs]
    before = [(layer, layer.integers, layer.weight_scale, layer.bias) for layer in layers]
    try:
        for layer, _, scale, bias in before:
            weight = narrowed(layer.integer_weight().numpy(), scale.detach().numpy(), axis=0)
            layer.set_integers(torch.from_numpy(weight.after), torch.from_numpy(weight.wider))
            if isinstance(layer, QuantLinear) and layer.input_shift is not None and bias is not None:
                corrected = corrected_bias(bias.detach().numpy(), layer.input_shift.numpy(), weight.change().T)
                layer.bias = nn.Parameter(torch.from_numpy(corrected), requires_grad=False)
        yield
    finally:
        for layer, own, scale, bias in before:
            layer.set_integers(own, scale)
            layer.bias = bias
