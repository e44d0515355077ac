"""Scale learning: input and weight scales of a whole encoder, by the distance of its output from the float model's."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from p4q_edge.quant import affine
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in

logger = logging.getLogger(__name__)

LEARNING_RATE = 1e-2
"""Of the scales' logarithms: a step of Adam changes a scale by about this share."""

BATCH_SIZE = 32


@torch.enable_grad()
def learn_scales(model: nn.Module, images: Tensor, teacher: Tensor, *, epochs: int, seed: int = 0) -> None:
    """Learn the scales of all calibrated linears in place, with their weights held.

    The loss is one minus the cosine between the outputs of the quantized and the float model. Logarithms of the scales
    are learned, so that Adam needs none of LSQ's step-size factors. In the end each scale is rounded to what a graph
    stores; integers that were chosen before (`QuantLinear.integers`) stay.
    Learned scales with a higher loss are not taken. Biases change with the scales where they hold the product of the
    weight with a shift of the input.

    Args:
        images: `(N, 3, H, W)` float32.
        teacher: `(N, dim)`, normalized outputs of the float model.

    Source: LSQ, Esser et al., arXiv:1902.08153, eq. (1) to (3), for the gradient (`p4q_edge.quant.fake`).
    """
    linears = {name: linear for name, linear in quant_linears(model).items() if linear.calibrated}
    if not linears:
        return
    before = [(lin.input_scale, lin.weight_scale, lin.bias) for lin in linears.values()]
    loss_before = _loss(model, images, teacher)
    pairs = [(x.log().requires_grad_(), weight.log().requires_grad_()) for x, weight, _ in before]
    constants = {name: _ShiftedBias(linear) for name, linear in linears.items() if linear.input_shift is not None}
    steps = epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.Adam([log for pair in pairs for log in pair], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with running_in(model, Phase.QUANTIZED):
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images), generator=generator), BATCH_SIZE):
                chosen = chosen.to(images.device)
                for linear, pair in zip(linears.values(), pairs, strict=True):
                    _set_scales(linear, *(log.exp() for log in pair))
                biases = {f"{name}.bias": constant.at(linears[name]) for name, constant in constants.items()}
                embedding = F.normalize(functional_call(model, biases, (images[chosen],)), dim=-1)
                loss = 1.0 - (embedding * teacher[chosen]).sum(-1).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        for linear, pair in zip(linears.values(), pairs, strict=True):
            _set_scales(linear, *(affine.representable_scale(log.detach().exp()) for log in pair))
        for name, constant in constants.items():
            linears[name].correct_bias(constant.at(linears[name]))
        if _loss(model, images, teacher) > loss_before:
            logger.info("learned scales are no nearer to the float model; the calibrated ones are kept")
            for linear, (input_scale, weight_scale, bias) in zip(linears.values(), before, strict=True):
                _set_scales(linear, input_scale, weight_scale)
                linear.bias = bias


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, teacher: Tensor) -> float:
    with running_in(model, Phase.QUANTIZED):
        parts = [F.normalize(model(batch), dim=-1) for batch in torch.split(images, BATCH_SIZE)]
    return float(1.0 - (torch.cat(parts) * teacher).sum(-1).mean())


class _ShiftedBias:
    """The bias of a linear with a shifted input, which holds the shift's product with the weight at whatever scale."""

    def __init__(self, linear: QuantLinear) -> None:
        assert linear.bias is not None
        assert linear.input_shift is not None
        self._shift = linear.input_shift
        self._rest = linear.bias.detach() + linear.quantized_weight().detach() @ self._shift

    def at(self, linear: QuantLinear) -> Tensor:
        """Return the bias `(out_features,)` at the present scale of the weight."""
        return self._rest - linear.quantized_weight() @ self._shift


def _set_scales(linear: QuantLinear, input_scale: Tensor, weight_scale: Tensor) -> None:
    linear.input_scale = input_scale
    linear.set_integers(linear.integers, weight_scale)
