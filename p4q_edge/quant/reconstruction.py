"""Reconstruction: integers, scales and biases of all linears, learned together towards the float model's features.

Roundings that are chosen linear by linear cannot make up for each other. Here the whole encoder is run quantized, on
images that are cut out, and mirrored, anew each time, and its linears are moved along the gradient of what its output
and its residual streams differ by from the float model's. No labels are needed, and nothing is added at run time.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from p4q_edge.quant import affine
from p4q_edge.quant.fake import clamp_ste, round_ste
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.runtime.progress import task

logger = logging.getLogger(__name__)

BATCH_SIZE = 8
"""Images of one step; all activations of those are held."""

INTEGER_RATE, SCALE_RATE, BIAS_RATE = 2e-4, 2e-4, 5e-5
"""Learning rates: of integers in steps of the grid, of the scales' logarithms, and of biases.

Five times the first gained more in 150 steps on a CLIP of 32 pixels, and lost in 152 steps of half as many images on a
ViT-S/14, whose products were in bfloat16 there."""

WARM_UP = 20
"""Steps in which the rates rise."""

MARGIN = 0.01
"""How far inside its rounding interval each weight begins, in steps of the grid."""

STREAM_WEIGHT = 1.0
"""Of the mean relative squared error of what LayerNorms give, beside one minus the cosine of the output."""

LEAST_AREA = 0.5
"""Share of an image that is cut out, at least."""


@torch.enable_grad()
def reconstruct(model: nn.Module, images: Tensor, *, epochs: int, seed: int = 0) -> None:
    """Learn integers, scales and biases of all calibrated linears in place; their weights in float stay.

    The loss is one minus the cosine between the outputs of the quantized and the float model, plus the mean relative
    squared error of what LayerNorms give. Roundings pass their gradients on. In the end each scale is rounded to what a
    graph stores. What was learned is not taken where its loss on the images as they are is higher than before.

    Args:
        model: calibrated; its float phase is the float model.
        images: `(N, 3, H, W)` float32.
        epochs: passes over the images.

    Source: LSQ, Esser et al., arXiv:1902.08153, for the gradients of scales; the straight-through estimator of Bengio
    et al., arXiv:1308.3432, for integers; both towards features in place of labels.
    """
    learned = {name: _Learned(linear) for name, linear in quant_linears(model).items() if linear.calibrated}
    if not learned:
        return
    before = _loss(model, images)
    optimizer = torch.optim.Adam(
        [
            {"params": [each.position for each in learned.values()], "lr": INTEGER_RATE},
            {"params": [log for each in learned.values() for log in each.logs], "lr": SCALE_RATE},
            {"params": [each.bias for each in learned.values()], "lr": BIAS_RATE},
        ],
        fused=True,
    )
    steps = max(1, epochs * len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = _batches(len(images), generator)
    with _streams(model) as streams, task("calibrate, reconstruction", total=steps) as advance:
        for _ in range(steps):
            batch = _cut(images[next(chosen).to(images.device)], generator)
            loss = _distance(model, batch, learned, streams)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(1)
    with torch.no_grad():
        for each in learned.values():
            each.fix()
        if not _loss(model, images) <= before:  # nor where it is no number
            logger.info("the reconstruction is no nearer to the float model; what was calibrated is kept")
            for each in learned.values():
                each.restore()


class _Learned:
    """What is learned of one linear.

    Attributes:
        position: of each weight on its grid, in steps, `(out, in)`; rounded to the integer.
        logs: logarithms of the scales of the weight `(out,)` and of the input `()`.
        bias: `(out,)`, without the product of the weight with a shift of the input.
    """

    def __init__(self, linear: QuantLinear) -> None:
        self.linear = linear
        self._before = linear.integers, linear.weight_scale, linear.input_scale, linear.bias, linear.float_bias
        self._limits = affine.weight_range(linear.scheme.weight_bits)
        integers = linear.integer_weight().float()
        near = 0.5 - MARGIN
        position = linear.weight.detach() / linear.weight_scale[:, None]
        self.position = torch.clamp(position, integers - near, integers + near).requires_grad_()
        self.logs = tuple(scale.log().requires_grad_() for scale in (linear.weight_scale, linear.input_scale))
        bias = torch.zeros_like(linear.weight_scale) if linear.bias is None else linear.bias.detach().clone()
        self.bias = self._with_shift(bias, 1.0).detach().requires_grad_()

    def _with_shift(self, bias: Tensor, sign: float) -> Tensor:
        """Return the bias plus or minus the product of the weight, as it is now, with the shift of the input."""
        shift = self.linear.input_shift
        return bias if shift is None else bias + sign * (self.linear.quantized_weight() @ shift)

    def _integers(self) -> Tensor:
        return clamp_ste(round_ste(self.position), *self._limits)

    def put(self) -> Tensor:
        """Run the linear with what is learned so far; return its bias, which it takes by `functional_call`."""
        weight_scale, input_scale = (log.exp() for log in self.logs)
        self.linear.set_integers(self._integers(), weight_scale)
        self.linear.input_scale = input_scale
        return self._with_shift(self.bias, -1.0)

    def fix(self) -> None:
        """Store what was learned as integers, scales as a graph holds them, and a bias."""
        weight_scale, input_scale = (affine.representable_scale(log.detach().exp()) for log in self.logs)
        self.linear.set_integers(self._integers().detach().to(torch.int8), weight_scale)
        self.linear.input_scale = input_scale
        self.linear.correct_bias(self._with_shift(self.bias.detach(), -1.0))

    def restore(self) -> None:
        """Give the linear back what it had."""
        integers, weight_scale, input_scale, bias, float_bias = self._before
        self.linear.set_integers(integers, weight_scale)
        self.linear.input_scale, self.linear.bias, self.linear.float_bias = input_scale, bias, float_bias


def _distance(model: nn.Module, batch: Tensor, learned: dict[str, _Learned], streams: dict[str, Tensor]) -> Tensor:
    """Return the loss of one batch."""
    with torch.no_grad(), running_in(model, Phase.FLOAT):
        exact = F.normalize(model(batch), dim=-1)
        targets = dict(streams)
    biases = {f"{name}.bias": each.put() for name, each in learned.items()}
    with running_in(model, Phase.QUANTIZED):
        found = F.normalize(functional_call(model, biases, (batch,)), dim=-1)
    loss = 1.0 - (found * exact).sum(-1).mean()
    errors = [(streams[name] - target).square().mean() / target.var() for name, target in targets.items()]
    return loss + STREAM_WEIGHT * torch.stack(errors).mean() if errors else loss


@contextmanager
def _streams(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each LayerNorm of the model gave last, by path, for the length of a `with` block."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: seen.update({name: output})

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices of images without end, each image once before any is seen twice."""
    left = torch.zeros(0, dtype=torch.int64, device=generator.device)
    while True:
        while len(left) < BATCH_SIZE:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:BATCH_SIZE]
        left = left[BATCH_SIZE:]


def _cut(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut one rectangle out of all, at the size they had, and mirror one half of the batches."""
    height, width = images.shape[-2:]
    side, down, right, mirror = torch.rand(4, generator=generator).tolist()
    share = math.sqrt(LEAST_AREA + (1 - LEAST_AREA) * side)
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
    part = images[..., top : top + rows, left : left + columns]
    part = F.interpolate(part, size=(height, width), mode="bilinear", antialias=True)
    return part.flip(-1) if mirror < 0.5 else part


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor) -> float:
    """Return one minus the mean cosine between quantized and float outputs."""
    outputs = {}
    for phase in (Phase.FLOAT, Phase.QUANTIZED):
        with running_in(model, phase):
            outputs[phase] = torch.cat([model(batch) for batch in torch.split(images, BATCH_SIZE)])
    return float(1.0 - F.cosine_similarity(outputs[Phase.FLOAT], outputs[Phase.QUANTIZED], dim=-1).mean())
