"""The attention pool of open_clip's ResNets with its projections as linear layers."""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """The mean of an image's positions asks all of them: ``(N, C, H, W) -> (N, out)``.

    open_clip's own hands the weights of its projections to one function of torch, where no rule that swaps linears
    finds them, and computes an answer for every position of which it returns the first.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(pool.positional_embedding.detach().clone(), requires_grad=False)
        self.q_proj = pool.q_proj
        self.k_proj = pool.k_proj
        self.v_proj = pool.v_proj
        self.c_proj = pool.c_proj
        self.num_heads = pool.num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, HW + 1, C)
        x = x + self.positional_embedding
        query, key, value = (self._heads(part) for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)))
        mixed = F.scaled_dot_product_attention(query, key, value)
        pooled: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2)[:, 0])
        return pooled

    def _heads(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        return x.view(n, length, self.num_heads, width // self.num_heads).transpose(1, 2)
