"""A toy CLIP and toy images: seconds on a CPU."""

from collections.abc import Callable

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.artifacts.manifest import ModelInfo
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

TOY_MEAN, TOY_STD = (0.4, 0.45, 0.5), (0.25, 0.26, 0.27)
TOY_CLASSES = ("red", "green", "blue", "very bright grey")


VISION = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def make_clip(*, quick_gelu: bool = False, seed: int = 0, kind: type = open_clip.CLIP, **text: object) -> nn.Module:
    """An open_clip ViT of two blocks with random weights; `kind` and `text` choose another text side."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = kind(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT | text, quick_gelu=quick_gelu)
        for module in clip.modules():
            if isinstance(module, nn.LayerNorm):  # ranges as uneven as those of a trained model
                module.weight.data = torch.exp(torch.randn_like(module.weight) * 0.7)
                module.bias.data = torch.randn_like(module.bias)
    return clip.eval().requires_grad_(False)


def loaded(clip: nn.Module) -> LoadedModel:
    """A model as `load_model` would return it."""
    info = ModelInfo(
        name="toy", pretrained="random", family="VisionTransformer", license="none", weights_sha256="0" * 64
    )
    spec = PreprocessSpec(size=(16, 16), mean=TOY_MEAN, std=TOY_STD)
    return LoadedModel(
        clip=clip,
        tokenizer=open_clip.SimpleTokenizer(context_length=24),
        preprocess=spec,
        info=info,
        logit_scale=float(clip.logit_scale.exp()),
        logit_bias=None,
    )


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
