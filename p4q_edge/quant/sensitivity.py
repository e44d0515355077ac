"""How much each output of each linear counts for what the model gives, from gradients of the float model.

The error of a linear matters by where it falls: behind the last attention only the class token is read, and before it
that token counts for many others. To first order the squared error of the normalized output is the sum of the squared
errors of a linear's outputs, each times its mean squared gradient, which is taken here as a product of one factor for
the token and one for the channel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant.linear import Phase, quant_linears, running_in

PROBES = 2
"""Random directions of the output whose gradients are averaged, for each image."""


@dataclass(frozen=True, kw_only=True)
class OutputWeights:
    """Weights of the squared errors of one linear's outputs.

    Attributes:
        positions: of each row of one image, such as each token: `shape[1:-1]` of the output, non-negative; 0 where
            nothing reads it. Their sum with all of `channels` is the mean squared gradient of one image.
        channels: `(out,)`, non-negative, mean 1.
    """

    positions: Tensor
    channels: Tensor

    @property
    def rows_read(self) -> int:
        """Number of rows of one image that reach the model's output."""
        return int((self.positions > 0).sum())

    def of_rows(self, images: int) -> Tensor:
        """Return weights of the rows of this number of images, flattened `(images * positions,)`."""
        return self.positions.expand(images, *self.positions.shape).flatten()


def output_weights(model: nn.Module, batches: Iterable[Tensor], *, seed: int = 0) -> dict[str, OutputWeights]:
    """Return the weights of each quantizable linear that the model's output depends on, by path.

    Source: the diagonal Fisher weighting of BRECQ, Li et al., arXiv:2102.05426, with random directions of the
    normalized output in place of a loss.

    Args:
        model: in float; takes a batch and gives `(N, dim)`.
        batches: few images at a time; all activations of a batch are held.
    """
    outputs: dict[str, Tensor] = {}
    sums: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # That of a constant, such as the learned query of a pool, depends on no image and counts all the same.
            outputs[name] = output if output.requires_grad else output.requires_grad_()

        return hook

    handles = [linear.register_forward_hook(keep(name)) for name, linear in quant_linears(model).items()]
    generator = torch.Generator().manual_seed(seed)
    count = 0
    try:
        with running_in(model, Phase.FLOAT), torch.enable_grad():
            for batch in batches:
                outputs.clear()
                embedding = F.normalize(model(batch.clone().requires_grad_()), dim=-1)
                for probe in range(PROBES):
                    direction = torch.randn(embedding.shape, generator=generator).to(embedding.device)
                    gradients = torch.autograd.grad(
                        (embedding * direction).sum(),
                        list(outputs.values()),
                        retain_graph=probe < PROBES - 1,
                        allow_unused=True,
                    )
                    _add(sums, dict(zip(outputs, gradients, strict=True)))
                count += PROBES * len(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: OutputWeights(positions=(rows / count).float(), channels=(channels / channels.mean()).float())
        for name, (rows, channels) in sums.items()
        if bool(rows.sum() > 0)
    }


def _add(sums: dict[str, tuple[Tensor, Tensor]], gradients: dict[str, Tensor | None]) -> None:
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        square = gradient.double().square()
        rows, channels = square.sum(-1).sum(0), square.flatten(0, -2).sum(0)
        before = sums.get(name)
        sums[name] = (rows, channels) if before is None else (before[0] + rows, before[1] + channels)
