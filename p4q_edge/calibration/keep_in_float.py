"""The fewest multiply-accumulates back in float: which layers of a calibrated encoder matter most, and how many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models import Batches, encode_batches
from p4q_edge.quant import Phase, QuantConv2d, QuantLinear, macs_by_module, quant_convs, quant_linears, running_in
from p4q_edge.runtime.progress import tracked

RANKED_IMAGES = 16
"""Images on which each layer alone is put into float, to rank them."""

RETURNS = 12
"""Largest number of layers that are tried back in integers, the most work first, once enough are in float."""

FloatLayer = QuantLinear | QuantConv2d


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What a layer in float would give and cost.

    Attributes:
        path: of the linear or convolution.
        gain: by how much the mean cosine loss falls when this layer alone is in float.
        macs: multiply-accumulates of an image.
    """

    path: str
    gain: float
    macs: int

    @property
    def per_mac(self) -> float:
        return self.gain / max(self.macs, 1)


def quantized_layers(encoder: nn.Module) -> dict[str, FloatLayer]:
    """Return the linears and convolutions that are quantized, by path."""
    layers: dict[str, FloatLayer] = {**quant_linears(encoder), **quant_convs(encoder)}
    return {path: layer for path, layer in layers.items() if layer.calibrated}


@contextmanager
def in_float(layers: Sequence[FloatLayer]) -> Iterator[None]:
    """Run quantized layers in float for the length of a `with` block."""
    for layer in layers:
        layer.in_float = True
    try:
        yield
    finally:
        for layer in layers:
            layer.in_float = False


def drawn(batches: Batches, limit: int) -> Batches:
    """At most `limit` of the images, evenly drawn."""
    return replace(batches, images=batches.images[:: -(-len(batches.images) // limit)])


@torch.no_grad()
def teacher_of(reference: nn.Module, batches: Batches) -> Tensor:
    """Normalized embeddings of the float image tower, `(N, dim)` float64."""
    return F.normalize(encode_batches(reference, batches).double(), dim=-1)


@torch.no_grad()
def embedding_loss(encoder: nn.Module, teacher: Tensor, batches: Batches) -> float:
    """Return one minus the mean cosine between the quantized encoder's embeddings and the `teacher`'s, `(N, dim)`."""
    with running_in(encoder, Phase.QUANTIZED):
        embedding = F.normalize(encode_batches(encoder, batches).double(), dim=-1)
    return float(1.0 - (embedding * teacher).sum(-1).mean())


@torch.no_grad()
def rank_by_sensitivity(encoder: nn.Module, reference: nn.Module, batches: Batches) -> list[Sensitivity]:
    """Rank the quantized layers by measured gain per multiply-accumulate, best first."""
    some = drawn(batches, RANKED_IMAGES)
    teacher = teacher_of(reference, some)
    everything = embedding_loss(encoder, teacher, some)
    with running_in(encoder, Phase.FLOAT):
        macs = macs_by_module(encoder, some.normalized(some.images[:1]))
    found = []
    layers = quantized_layers(encoder)
    for path, layer in tracked(layers.items(), "calibrate, loss of each layer"):
        with in_float([layer]):
            gain = everything - embedding_loss(encoder, teacher, some)
        found.append(Sensitivity(path=path, gain=gain, macs=macs.get(path, 0)))
    return sorted(found, key=lambda each: -each.per_mac)


def fewest(ranking: Sequence[Sensitivity], holds: Callable[[Sequence[str]], bool]) -> tuple[str, ...] | None:
    """Return the paths of the fewest layers, in the order of a ranking, with which a limit holds in float.

    The shortest beginning of the ranking that keeps the limit is found by bisection; then those that it is kept
    without go back, the most work first.

    Args:
        holds: whether the limit is kept with the layers at these paths in float; it is not without any.

    Returns:
        None where it is not kept with all of them.
    """
    order = [each.path for each in ranking]
    if not order or not holds(order):
        return None
    low, high = 0, len(order)  # the limit is broken with the first `low`, kept with the first `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(order[:middle]) else (middle, high)
    return _without_needless(order[:high], {each.path: each.macs for each in ranking}, holds)


def _without_needless(
    paths: Sequence[str], macs: Mapping[str, int], holds: Callable[[Sequence[str]], bool]
) -> tuple[str, ...]:
    kept = list(paths)
    for path in sorted(paths[:-1], key=lambda path: -macs[path])[:RETURNS]:  # without the last it is broken
        rest = [other for other in kept if other != path]
        if holds(rest):
            kept = rest
    return tuple(kept)
