"""Small convolutional towers of random weights."""

import open_clip
import timm
import torch
from torch import nn

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
