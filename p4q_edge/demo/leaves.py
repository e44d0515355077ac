"""Drawn images to measure ranges on where there are no photographs: discs that hide one another, as leaves do.

Source: A. B. Lee, D. Mumford, J. Huang, Occlusion models for natural images, 2001: discs whose radii have the density
r^-3 give images with the statistics of photographs, whatever the distance.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

LEAVES = 64
"""Number of the images."""
_SIDE = 320
_DISCS = 1500
_RADII = _SIDE / 64, _SIDE / 2
_GREY, _SPREAD = 128.0, 60.0
"""Mean of the colours of an image, and deviation of that mean between images."""
_LIGHT, _COLOUR = 55.0, 30.0
"""Deviation of the lightness and of the colour of discs."""
_SHADE, _GRAIN = 30.0, 8.0
"""Deviation of the gradient over an image, and the most noise of its pixels."""


def draw_leaves(index: int) -> Image:
    """Return one of the images, RGB, the same for an index at all times.

    Args:
        index: 0 to `LEAVES` - 1.
    """
    return _drawn(index).copy()


@lru_cache(maxsize=LEAVES)
def _drawn(index: int) -> Image:
    # Only a build without photographs needs them.
    import numpy as np
    from PIL import Image, ImageDraw

    generator = np.random.default_rng([20260, index])
    picture = Image.new("RGB", (_SIDE, _SIDE))
    draw = ImageDraw.Draw(picture)
    least, most = _RADII
    # The inverse of the cumulative share of discs up to a radius, whose density is r^-3.
    radii = 1 / np.sqrt(1 / least**2 - generator.random(_DISCS) * (1 / least**2 - 1 / most**2))
    centres = generator.random((_DISCS, 2)) * _SIDE
    mean = generator.normal(_GREY, _SPREAD, 3)
    colours = mean + generator.normal(0, _LIGHT, (_DISCS, 1)) + generator.normal(0, _COLOUR, (_DISCS, 3))
    for (x, y), radius, colour in zip(centres, radii, colours.clip(0, 255).astype(int), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour.tolist()))
    across, down = generator.normal(0, _SHADE, 2)
    rows, columns = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    shade = across * columns + down * rows
    grain = generator.normal(0, generator.uniform(0, _GRAIN), (_SIDE, _SIDE, 3))
    return Image.fromarray((np.asarray(picture) + shade[..., None] + grain).clip(0, 255).astype(np.uint8))
