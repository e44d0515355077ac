"""Random views of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

AUGMENT_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How each of some images is moved, drawn once for all of them: whoever applies them, in any order, sees the same.

    Attributes:
        matrices: from places in the view to places in the image, `(images, 2, 3)`.
    """

    matrices: Tensor

    @classmethod
    def draw(cls, count: int, *, generator: torch.Generator, flip: bool) -> "Moves":
        """Rotations up to 10 degrees, scales 0.85 to 1.15, shifts up to a tenth of the side, and where `flip` is true
        a mirror half of the time.
        """

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(count, generator=generator) * (high - low) + low

        angle, scale = uniform(-0.175, 0.175), uniform(0.85, 1.15)
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = [
            torch.stack([mirror * cos, -sin, uniform(-0.2, 0.2)], 1),
            torch.stack([mirror * sin, cos, uniform(-0.2, 0.2)], 1),
        ]
        return cls(matrices=torch.stack(rows, 1))

    def apply(self, batch: Tensor, *, first: int = 0) -> Tensor:
        """Return the views of the images from number `first` on, uint8 `(n, 3, H, W)` to the same.

        Border pixels are repeated.
        """
        moved = torch.empty_like(batch)
        for some in torch.split(torch.arange(len(batch)), AUGMENT_BATCH_SIZE):
            part = batch[some]
            grid = torch.nn.functional.affine_grid(self.matrices[first + some], list(part.shape), align_corners=False)
            sampled = torch.nn.functional.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
            moved[some] = sampled.round().clamp(0, 255).to(torch.uint8)
        return moved


def augment(batch: Tensor, *, generator: torch.Generator, flip: bool) -> Tensor:
    """Return a random small affine view of each image, uint8 `(N, 3, H, W)` to the same; see `Moves`."""
    return Moves.draw(len(batch), generator=generator, flip=flip).apply(batch)
