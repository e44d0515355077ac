"""Scale learning: input and weight scales of a whole encoder, by the distance of its output from the float model's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in

LEARNING_RATE = 1e-2
"""Of the scales' logarithms: a step of Adam changes a scale by about this share."""

BATCH_SIZE = 32


@torch.enable_grad()
def learn_scales(model: nn.Module, images: Tensor, teacher: Tensor, *, epochs: int, seed: int = 0) -> None:
    """Learn the scales of all calibrated linears in place, with their weights and biases held.

    The loss is one minus the cosine between the outputs of the quantized and the float model. Logarithms of the scales
    are learned, so that Adam needs none of LSQ's step-size factors. In the end each scale is rounded to what a graph
    stores; integers that were chosen before (`QuantLinear.integers`) stay.

    Args:
        images: ``(N, 3, H, W)`` float32.
        teacher: ``(N, dim)``, normalized outputs of the float model.

    Source: LSQ, Esser et al., arXiv:1902.08153, eq. (1) to (3), for the gradient (`p4q_edge.quant.fake`).
    """
    linears = [linear for linear in quant_linears(model).values() if linear.calibrated]
    logs = [(lin.input_scale.log().requires_grad_(), lin.weight_scale.log().requires_grad_()) for lin in linears]
    steps = epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.Adam([log for pair in logs for log in pair], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with running_in(model, Phase.QUANTIZED):
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images), generator=generator), BATCH_SIZE):
                for linear, pair in zip(linears, logs, strict=True):
                    _set_scales(linear, *(log.exp() for log in pair))
                embedding = F.normalize(model(images[chosen]), dim=-1)
                loss = 1.0 - (embedding * teacher[chosen]).sum(-1).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    for linear, pair in zip(linears, logs, strict=True):
        _set_scales(linear, *(affine.representable_scale(log.detach().exp()) for log in pair))


def _set_scales(linear: QuantLinear, input_scale: Tensor, weight_scale: Tensor) -> None:
    linear.input_scale = input_scale
    linear.set_integers(linear.integers, weight_scale)
