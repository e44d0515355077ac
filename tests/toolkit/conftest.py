"""A toy CLIP and toy images: seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from toy_models import loaded, make_clip

from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.images.image_set import ImageSet

if TYPE_CHECKING:
    from toy_exports import Exported

TOY_CLASSES = ("red", "green", "blue", "very bright grey")


@pytest.fixture
def toy_clip() -> LoadedModel:
    """A toy of CLIP's own kind."""
    return loaded(make_clip())


@pytest.fixture
def clip_with_text() -> Callable[..., LoadedModel]:
    """Makes a toy with another text side, from keywords of open_clip's text configuration."""

    def make(*, kind: type = open_clip.CustomTextCLIP, **text: object) -> LoadedModel:
        return loaded(make_clip(kind=kind, **text))

    return make


@pytest.fixture
def toy_pixels() -> Tensor:
    """Random uint8 images ``(24, 3, 16, 16)``."""
    return torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images(toy_pixels: Tensor) -> NDArray[np.uint8]:
    """The same as an array."""
    array: NDArray[np.uint8] = toy_pixels.numpy()
    return array


@pytest.fixture(scope="session")
def kept_exports() -> dict[str, Exported]:
    """What was exported; see `toy_exports.export_once`."""
    return {}


@pytest.fixture
def toy_images() -> Callable[[int], ImageSet]:
    """Makes an image set with so many noisy, coloured images of each of four classes."""

    def make(per_class: int) -> ImageSet:
        generator = np.random.default_rng(0)
        colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 200]])
        labels = np.repeat(np.arange(4), per_class)
        noise = generator.integers(-40, 40, (len(labels), 16, 16, 3))
        arrays = (colours[labels][:, None, None, :] + noise).clip(0, 255).astype(np.uint8)
        return ImageSet(
            names=tuple(f"toy[{i}]" for i in range(len(labels))),
            labels=labels.astype(np.int64),
            class_names=TOY_CLASSES,
            open_image=lambda i: Image.fromarray(arrays[i]),
            read_bytes=lambda i: arrays[i].tobytes(),
        )

    return make
