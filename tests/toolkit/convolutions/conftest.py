"""Small convolutional towers with random weights and statistics, and a classifier around each."""

from collections.abc import Callable

import pytest
import timm
import torch
from conv_models import DIM, SIDE, make_fastvit, make_repvgg, make_resnet, randomize
from torch import Tensor, nn

from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.artifacts.manifest import ModelInfo
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

TOWERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": make_resnet,
    "fastvit": make_fastvit,
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=DIM),
    "padded": lambda: timm.create_model("test_efficientnet", num_classes=DIM, pad_type="same"),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=DIM, ls_init_value=1.0),
    "repvgg": make_repvgg,
    "rotary": lambda: timm.models.eva.Eva(
        img_size=SIDE, num_classes=DIM, embed_dim=64, depth=2, num_heads=2, qkv_fused=False, use_rot_pos_emb=True
    ),
    "timm_resnet": lambda: timm.create_model("test_resnet", num_classes=DIM),
}


@pytest.fixture
def tower() -> Callable[[str], nn.Module]:
    """Makes a tower by its name in TOWERS."""

    def make(name: str) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return randomize(TOWERS[name]())

    return make


@pytest.fixture
def batch() -> Tensor:
    """Normalized images ``(4, 3, 64, 64)``."""
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def photos() -> Tensor:
    """Smooth uint8 images ``(12, 3, 64, 64)``."""
    coarse = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    return (smooth * 60 + 128).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def as_model() -> Callable[[nn.Module], LoadedModel]:
    """Wraps a tower as `load_model` would return it."""

    def wrap(visual: nn.Module) -> LoadedModel:
        clip = nn.Module()
        clip.visual = visual
        return LoadedModel(
            clip=clip,
            tokenizer=None,
            preprocess=PreprocessSpec(size=(SIDE, SIDE), mean=(0.4, 0.45, 0.5), std=(0.25, 0.26, 0.27)),
            info=ModelInfo(name="toy", pretrained="random", family="", license="none", weights_sha256="0" * 64),
            logit_scale=20.0,
            logit_bias=None,
        )

    return wrap
