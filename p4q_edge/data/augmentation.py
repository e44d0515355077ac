"""Random views of images."""

import torch
from torch import Tensor

AUGMENT_BATCH_SIZE = 64


def augment(batch: Tensor, *, generator: torch.Generator, flip: bool) -> Tensor:
    """A random small affine view of each image, uint8 ``(N, 3, H, W)`` to the same.

    Rotation up to 10 degrees, scale 0.85 to 1.15, shift up to a tenth of the side, mirrored half of the time when
    `flip` is true. Border pixels are repeated.
    """
    count = len(batch)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.175, 0.175), uniform(0.85, 1.15)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [
        torch.stack([mirror * cos, -sin, uniform(-0.2, 0.2)], 1),
        torch.stack([mirror * sin, cos, uniform(-0.2, 0.2)], 1),
    ]
    moved = torch.empty_like(batch)
    for some in torch.split(torch.arange(count), AUGMENT_BATCH_SIZE):
        part = batch[some]
        grid = torch.nn.functional.affine_grid(torch.stack(rows, 1)[some], list(part.shape), align_corners=False)
        sampled = torch.nn.functional.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
        moved[some] = sampled.round().clamp(0, 255).to(torch.uint8)
    return moved
