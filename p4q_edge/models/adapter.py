"""The low-bit adapter: a bottleneck on the image feature, fake-quantized while it is learned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.quant import Phase, QuantLinear, QuantScheme, running_in, set_phase

REDUCTION = 4
FREEZE_ROWS = 1 << 16
"""Features whose ranges are observed at once."""


class Adapter(nn.Module):
    """`v = normalize(ratio * A(z) + (1 - ratio) * z)` with `A(z) = W2 relu(W1 z + b1) + b2`.

    Attributes:
        down: W1, `(dim / 4, dim)`, quantized.
        up: W2, `(dim, dim / 4)`, quantized. With `zero_init` it starts at zero, so that learning starts at the
            quantized model itself.
        ratio_logit: `()`; the ratio is its sigmoid. It is learned when `learn_ratio` is true.

    Source: P4Q, arXiv:2409.17634, section 3.3; CLIP-Adapter, arXiv:2110.04544, eq. (3) to (5).
    """

    def __init__(
        self,
        dim: int,
        scheme: QuantScheme,
        *,
        ratio: float,
        learn_ratio: bool,
        zero_init: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        hidden = max(dim // REDUCTION, 1)
        self.down = QuantLinear(_kaiming(hidden, dim, generator), torch.zeros(hidden), scheme)
        up = torch.zeros(dim, hidden) if zero_init else _kaiming(dim, hidden, generator)
        self.up = QuantLinear(up, torch.zeros(dim), scheme)
        self.ratio_logit = nn.Parameter(torch.logit(torch.tensor(ratio)), requires_grad=learn_ratio)
        self.set_dynamic(True)

    @property
    def ratio(self) -> Tensor:
        """Share of the adapted feature, `()` in (0, 1)."""
        return torch.sigmoid(self.ratio_logit)

    def forward(self, features: Tensor) -> Tensor:
        """Mixed features `(N, dim)`, not normalized."""
        adapted: Tensor = self.up(F.relu(self.down(features)))
        ratio = self.ratio
        return ratio * adapted + (1 - ratio) * features

    def set_dynamic(self, dynamic: bool) -> None:
        """Let scales follow weights and batches (while learning), or hold them."""
        for linear in (self.down, self.up):
            linear.follow(dynamic)
        set_phase(self, Phase.QUANTIZED)

    @torch.no_grad()
    def freeze(self, features: Tensor) -> None:
        """End learning: fix weight scales, and input scales from the features `(N, dim)` learned on."""
        self.set_dynamic(False)
        self.requires_grad_(False)
        for phase in (Phase.RANGING, Phase.CALIBRATING):
            with running_in(self, phase):
                for some in torch.split(features, FREEZE_ROWS):
                    self(some.to(self.down.weight.device))
        for linear in (self.down, self.up):
            linear.scale_weight()
            linear.scale_input()


def _kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    bound = float(columns) ** -0.5  # nn.Linear's default, with an explicit generator
    uniform = torch.rand(rows, columns, generator=generator) * 2 - 1
    return torch.mul(uniform, bound)
