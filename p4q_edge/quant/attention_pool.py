"""The attention pool of open_clip's ResNets with its projections as linear layers."""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """The mean of an image's positions asks all of them: `(N, C, H, W) -> (N, out)`.

    open_clip's own hands the weights of its projections to one function of torch, where no rule that swaps linears
    finds them, and computes an answer for every position of which it returns the first.

    Key and value are one linear and the last projection still has the dimension of positions: ONNX Runtime has no
    integer kernel for two products that share their input, nor for a matrix with a bias.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(pool.positional_embedding.detach().clone(), requires_grad=False)
        self.q_proj = pool.q_proj
        self.kv_proj = _joined(pool.k_proj, pool.v_proj)
        self.c_proj = pool.c_proj
        self.num_heads = pool.num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, HW + 1, C)
        x = x + self.positional_embedding
        query = self.q_proj(x[:, :1])
        key, value = self.kv_proj(x).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value))
        pooled: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))  # (N, 1, out)
        return pooled[:, 0]

    def _heads(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        return x.view(n, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def _joined(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Return one linear that gives the results of both, one behind the other."""
    joined = nn.Linear(first.in_features, first.out_features + second.out_features)
    joined.weight = nn.Parameter(torch.cat([first.weight, second.weight]).detach(), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([first.bias, second.bias]).detach(), requires_grad=False)
    return joined
