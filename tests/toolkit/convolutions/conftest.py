"""Small convolutional towers with random weights and statistics, and a classifier around each."""

from collections.abc import Callable

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.artifacts.manifest import ModelInfo
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

SIDE = 64
DIM = 24


def randomize(model: nn.Module) -> nn.Module:
    """Give norms and layer scales statistics as uneven as those of a trained model."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.3
        gamma = getattr(module, "gamma", None)
        if isinstance(gamma, nn.Parameter):
            gamma.data = torch.rand(gamma.shape, generator=generator) + 0.5
    return model.eval().requires_grad_(False)


def make_resnet() -> nn.Module:
    """open_clip's ResNet of CLIP, narrow."""
    resnet = open_clip.modified_resnet.ModifiedResNet(
        layers=[1, 2, 1, 1], output_dim=DIM, heads=4, image_size=SIDE, width=16
    )
    for name, parameter in resnet.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    return resnet


def make_fastvit() -> nn.Module:
    """A FastViT, as MobileCLIP has it, of four blocks."""
    return timm.models.fastvit.FastVit(
        layers=(1, 1, 1, 1),
        embed_dims=(16, 16, 32, 32),
        mlp_ratios=(2, 2, 2, 2),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        layer_scale_init_value=1.0,
        num_classes=DIM,
    )


def make_repvgg() -> nn.Module:
    """A RepVGG of five blocks."""
    byobnet = timm.models.byobnet
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=2, c=channels, s=2, gs=0) for channels in (16, 32))
    config = byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16)
    return byobnet.ByobNet(config, num_classes=DIM)


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": make_resnet,
    "fastvit": make_fastvit,
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=DIM),
    "padded": lambda: timm.create_model("test_efficientnet", num_classes=DIM, pad_type="same"),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=DIM, ls_init_value=1.0),
    "repvgg": make_repvgg,
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
