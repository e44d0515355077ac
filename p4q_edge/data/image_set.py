"""How labelled images become the pixels that a model learns from."""

from typing import TYPE_CHECKING

import numpy as np

from p4q_edge.runtime.images import ImageSet, PreprocessSpec, preprocess
from p4q_edge.runtime.progress import tracked

if TYPE_CHECKING:
    from torch import Tensor


def pixels(images: ImageSet, spec: PreprocessSpec) -> "Tensor":
    """All images as the engine takes them, uint8 ``(images, 3, H, W)``.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    # Imported here: labelled images are read and checked before torch is loaded.
    import torch

    out = np.empty((len(images), 3, *spec.size), dtype=np.uint8)
    for i in tracked(range(len(images)), "read images"):
        out[i] = preprocess(images.open_image(i), spec)
    return torch.from_numpy(out)
