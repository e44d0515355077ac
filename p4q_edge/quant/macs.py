"""Which share of an encoder's multiply-accumulates runs in integers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from p4q_edge.quant.attention import attentions
from p4q_edge.quant.conv import QuantConv2d
from p4q_edge.quant.linear import Phase, running_in


@dataclass(frozen=True, kw_only=True)
class MacCount:
    """Multiply-accumulates of one image: of linears, convolutions and attention products.

    Attributes:
        total: of all.
        integer: of those that are quantized.
    """

    total: int
    integer: int

    @property
    def integer_share(self) -> float:
        """Between 0 and 1; 0 where nothing is multiplied."""
        return self.integer / self.total if self.total else 0.0


def _quantized(module: nn.Module) -> bool:
    """Return whether a module multiplies by a weight on integer grids, whatever kind of layer it is."""
    return isinstance(getattr(module, "weight", None), Tensor) and bool(getattr(module, "calibrated", False))


@torch.no_grad()
def macs_by_module(encoder: nn.Module, sample: Tensor) -> dict[str, int]:
    """Multiply-accumulates of the first image by module path; a module's count holds those of its parts, `""` all.

    Args:
        sample: normalized float32 images, `(N, 3, H, W)`.
    """
    with FlopCounterMode(display=False) as counter:
        encoder(sample[:1])
    root = type(encoder).__name__
    counts = {name: sum(by_kind.values()) // 2 for name, by_kind in counter.get_flop_counts().items()}
    return {name.removeprefix(root).lstrip("."): macs for name, macs in counts.items() if name.startswith(root)} | {
        "": counts.get("Global", 0)
    }


def count_macs(encoder: nn.Module, sample: Tensor, *, convolutions: bool = True) -> MacCount:
    """Count while one image runs through a calibrated encoder in floating point; nothing is changed.

    Args:
        sample: normalized float32 images, of which the first is used, `(N, 3, H, W)`.
        convolutions: whether quantized convolutions count as integer work; on CPUs they compute in float.
    """
    with running_in(encoder, Phase.FLOAT):
        counts = macs_by_module(encoder, sample)

    def of(paths: Iterable[str]) -> int:
        return sum(counts.get(path, 0) for path in paths)

    chosen = {path: module for path, module in encoder.named_modules() if _quantized(module)}
    integer = of(path for path, module in chosen.items() if convolutions or not isinstance(module, QuantConv2d))
    for path, attention in attentions(encoder).items():
        if attention.products is not None and attention.products.calibrated:
            integer += of([path]) - of(f"{path}.{name}" for name, _ in attention.named_children())
    return MacCount(total=counts[""], integer=integer)
