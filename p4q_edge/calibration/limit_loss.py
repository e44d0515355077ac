"""Accuracy on demand: put the fewest multiply-accumulates back into float until a limit on the loss holds."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models import Batches, encode_batches, to_batch
from p4q_edge.quant import Phase, QuantLinear, macs_by_module, quant_linears, running_in
from p4q_edge.runtime.errors import QualityGateError

logger = logging.getLogger(__name__)

RANKED_IMAGES = 16
"""Images on which each linear alone is put into float, to rank them."""

JUDGED_IMAGES = 128
"""At most so many images, evenly drawn, decide whether the limit holds."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What a linear in float would give and cost.

    Attributes:
        path: of the linear.
        gain: by how much the mean cosine loss falls when this linear alone is in float.
        macs: multiply-accumulates of an image.
    """

    path: str
    gain: float
    macs: int

    @property
    def per_mac(self) -> float:
        return self.gain / max(self.macs, 1)


@torch.no_grad()
def embedding_loss(encoder: nn.Module, teacher: Tensor, batches: Batches) -> float:
    """One minus the mean cosine between the quantized encoder's embeddings and the `teacher`'s, ``(N, dim)``."""
    with running_in(encoder, Phase.QUANTIZED):
        embedding = F.normalize(encode_batches(encoder, batches).double(), dim=-1)
    return float(1.0 - (embedding * teacher).sum(-1).mean())


@torch.no_grad()
def rank_by_sensitivity(encoder: nn.Module, reference: nn.Module, batches: Batches) -> list[Sensitivity]:
    """Rank the quantized linears by measured gain per multiply-accumulate, best first."""
    some = _drawn(batches, RANKED_IMAGES)
    teacher = _teacher(reference, some)
    everything = embedding_loss(encoder, teacher, some)
    with running_in(encoder, Phase.FLOAT):
        macs = macs_by_module(encoder, to_batch(some.images[:1], some.spec))
    found = []
    for path, linear in _quantized(encoder).items():
        with _in_float([linear]):
            gain = everything - embedding_loss(encoder, teacher, some)
        found.append(Sensitivity(path=path, gain=gain, macs=macs.get(path, 0)))
    return sorted(found, key=lambda each: -each.per_mac)


@torch.no_grad()
def limit_loss(encoder: nn.Module, reference: nn.Module, batches: Batches, limit: float) -> tuple[str, ...]:
    """Put linears into float, in the order of `rank_by_sensitivity`, until the mean cosine loss is at most `limit`.

    The shortest beginning of the ranking that keeps the limit is found by bisection, then those that it keeps without
    go back, the most work first.

    Args:
        encoder: calibrated; changed in place.
        reference: the float image tower.
        batches: the calibration images.

    Returns:
        Paths of the linears that are now in float, in order of the ranking.

    Raises:
        QualityGateError: the limit does not hold with all linears in float.
    """
    some = _drawn(batches, JUDGED_IMAGES)
    teacher = _teacher(reference, some)
    linears = _quantized(encoder)

    def loss(paths: Sequence[str]) -> float:
        with _in_float([linears[path] for path in paths]):
            return embedding_loss(encoder, teacher, some)

    if loss(()) <= limit:
        return ()
    ranking = rank_by_sensitivity(encoder, reference, batches)
    order = [each.path for each in ranking]
    if (least := loss(order)) > limit:
        raise QualityGateError(
            f"quantization.max_cosine_loss = {limit:g} cannot be kept: expected a mean loss of at most that on the "
            f"calibration images, got {least:.2g} with every linear in float. Set it to {1.1 * least:.2g} or more."
        )
    low, high = 0, len(order)  # the limit is broken with the first `low`, kept with the first `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(order[:middle]) <= limit else (middle, high)
    macs = {each.path: each.macs for each in ranking}
    kept = _without_needless(order[:high], macs, lambda paths: loss(paths) <= limit)
    for path in kept:
        linears[path].keep_float()
    logger.info("max_cosine_loss: %d of %d linears stay in float: %s", len(kept), len(order), ", ".join(kept))
    return kept


def _without_needless(
    paths: Sequence[str], macs: Mapping[str, int], holds: Callable[[Sequence[str]], bool]
) -> tuple[str, ...]:
    kept = list(paths)
    for path in sorted(paths, key=lambda path: -macs[path]):
        rest = [other for other in kept if other != path]
        if holds(rest):
            kept = rest
    return tuple(kept)


def _quantized(encoder: nn.Module) -> dict[str, QuantLinear]:
    return {path: linear for path, linear in quant_linears(encoder).items() if linear.calibrated}


def _drawn(batches: Batches, limit: int) -> Batches:
    return replace(batches, images=batches.images[:: -(-len(batches.images) // limit)])


def _teacher(reference: nn.Module, batches: Batches) -> Tensor:
    return F.normalize(encode_batches(reference, batches).double(), dim=-1)


@contextmanager
def _in_float(linears: Sequence[QuantLinear]) -> Iterator[None]:
    for linear in linears:
        linear.in_float = True
    try:
        yield
    finally:
        for linear in linears:
            linear.in_float = False
