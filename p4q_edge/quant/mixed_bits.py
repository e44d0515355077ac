"""Weights of different widths: which linears gain most from more bits, by gradients of the float model.

Rounding a weight moves every row that it multiplies at once, so that its cost is asked of the gradient of the weight,
not of the linear's output. To second order the cosine loss of a model is half the sum of the squared errors of its
weights, each times the mean squared gradient of the normalized output towards a random direction.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.quant.observers import weight_scale
from p4q_edge.quant.scheme import WIDEST_BITS
from p4q_edge.quant.sensitivity import PROBES, OutputWeights


def weight_sensitivity(
    model: nn.Module, batches: Iterable[Tensor], weights: Mapping[str, OutputWeights], *, seed: int = 0
) -> dict[str, Tensor]:
    """Return how much each weight of each linear counts, `(out, in)` float32 by path: its mean squared gradient.

    A bias takes up what an error of the weight does to the mean of the linear's output, so inputs count by their
    distance from their mean.

    Args:
        model: in float; takes a batch and gives `(N, dim)`.
        batches: few images at a time; all activations of a batch are held.
        weights: of the rows of each linear that is asked about.
        seed: of the random directions, one for each image, so that gradients of different images do not add up.
    """
    linears = {path: linear for path, linear in quant_linears(model).items() if path in weights}
    taken = [*batches]
    means = _input_means(model, taken, linears, weights)
    sums = {path: torch.zeros_like(linear.weight) for path, linear in linears.items()}
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with _watching(linears, lambda path: _around_mean(means[path])), running_in(model, Phase.FLOAT):
        for batch in taken:
            with torch.enable_grad(), _learnable(linears.values()):
                embedding = F.normalize(model(batch), dim=-1)
                for probe in range(PROBES):
                    direction = torch.randn(embedding.shape, generator=generator).to(embedding.device)
                    gradients = torch.autograd.grad(
                        (embedding * direction).sum(),
                        [linear.weight for linear in linears.values()],
                        retain_graph=probe < PROBES - 1,
                    )
                    for total, gradient in zip(sums.values(), gradients, strict=True):
                        total += gradient.detach().square()
            count += PROBES * len(batch)
    return {path: total / count for path, total in sums.items()}


Hook = Callable[[QuantLinear, tuple[Tensor, ...], Tensor], Tensor | None]


@contextmanager
def _watching(linears: Mapping[str, QuantLinear], hook_of: Callable[[str], Hook]) -> Iterator[None]:
    handles = [linear.register_forward_hook(hook_of(path)) for path, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _learnable(linears: Iterable[QuantLinear]) -> Iterator[None]:
    before = [(linear.weight, linear.weight.requires_grad) for linear in linears]
    for weight, _ in before:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, own in before:
            weight.requires_grad_(own)


def _around_mean(mean: Tensor) -> Hook:
    """Leave the output as it is, with a weight's gradient as if the input had been less by its mean."""

    def hook(linear: QuantLinear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output - F.linear(mean, linear.weight - linear.weight.detach())

    return hook


@torch.no_grad()
def _input_means(
    model: nn.Module,
    batches: Iterable[Tensor],
    linears: Mapping[str, QuantLinear],
    weights: Mapping[str, OutputWeights],
) -> dict[str, Tensor]:
    """Mean input of each linear over the rows that are read, by their weights, `(in,)`."""
    sums = {path: torch.zeros(linear.weight.shape[1], device=linear.weight.device) for path, linear in linears.items()}
    images = dict.fromkeys(linears, 0)

    def watch(path: str) -> Hook:
        def hook(linear: QuantLinear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows = linear.gained(inputs[0]).flatten(0, -2)
            each = weights[path].positions.flatten()
            found = len(rows) // len(each)
            sums[path] += (each / each.sum()).repeat(found) @ rows
            images[path] += found

        return hook

    with _watching(linears, watch), running_in(model, Phase.FLOAT):
        for batch in batches:
            model(batch)
    return {path: total / images[path] for path, total in sums.items()}


@torch.no_grad()
def rounding_losses(linear: QuantLinear, sensitivity: Tensor) -> dict[int, float]:
    """Return the cosine loss that rounding a linear's weight to the nearest is expected to cost, by number of bits.

    Args:
        sensitivity: of each weight, `(out, in)`; see `weight_sensitivity`.

    Returns:
        From the linear's own bits to `WIDEST_BITS`.
    """
    weight, found = linear.weight.detach(), {}
    for bits in range(linear.scheme.weight_bits, WIDEST_BITS + 1):
        scale = weight_scale(
            weight,
            bits=bits,
            observer=linear.scheme.weight_observer,
            percentile=linear.scheme.percentile,
            importance=sensitivity.mean(0),
        )[:, None]
        restored = affine.dequantize(affine.quantize(weight, scale, *affine.weight_range(bits)), scale)
        found[bits] = 0.5 * float(((restored - weight).square() * sensitivity).double().sum())
    return found


def spread_bits(losses: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], mean: float) -> dict[str, int]:
    """Return the bits of each layer with a small summed loss, at most `mean` bits a weight on average.

    Bit by bit the layer gets one that gains most for its number of weights, until no further bit fits. Where each bit
    of a layer gains less than the one before that is the least loss of all for layers of one size; of others the last
    bits may be spent better, as a large layer that no longer fits is passed over for smaller ones.

    >>> spread_bits({"a": {4: 8.0, 5: 2.0}, "b": {4: 4.0, 5: 1.0}}, {"a": 10, "b": 10}, 4.5)
    {'a': 5, 'b': 4}

    Args:
        losses: of each layer by number of bits, for a range of bits without gaps.
        sizes: number of weights of each layer.
    """
    bits = {path: min(by_bits) for path, by_bits in losses.items()}
    left = mean * sum(sizes[path] for path in bits) - sum(sizes[path] * own for path, own in bits.items())
    queue: list[tuple[float, str]] = []

    def offer(path: str) -> None:
        own = bits[path]
        if own + 1 in losses[path]:
            heapq.heappush(queue, ((losses[path][own + 1] - losses[path][own]) / sizes[path], path))

    for path in bits:
        offer(path)
    while queue:
        change, path = heapq.heappop(queue)
        if sizes[path] > left or change >= 0.0:
            continue
        bits[path] += 1
        left -= sizes[path]
        offer(path)
    return bits
