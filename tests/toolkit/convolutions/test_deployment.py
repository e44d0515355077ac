"""Deployment forms leave the function of a tower as it is, and leave nothing of what they promise to remove."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from p4q_edge.models import deployment
from p4q_edge.models.deployment import (
    ChannelAffine,
    fix_padding,
    fold_batch_norms,
    fold_layer_scales,
    linear_attention_pools,
    reparameterize,
    to_deployment_form,
)
from p4q_edge.models.image_tower import ImageEncoder
from p4q_edge.quant.swap import replace_module

Tower = Callable[[str], nn.Module]
EXACT = 1e-5
TOWERS = ("resnet", "fastvit", "padded", "convnext", "repvgg", "timm_resnet")


def change(model: nn.Module, before: Tensor, batch: Tensor) -> float:
    return float((model(batch) - before).abs().max() / before.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_the_outputs_stay_and_no_batch_norm_is_left(tower: Tower, batch: Tensor, name: str) -> None:
    model = ImageEncoder(tower(name))
    before = model(batch)
    assert to_deployment_form(model, batch)
    assert change(model, before, batch) < EXACT
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "name", "count"),
    [
        (lambda model, batch: reparameterize(model), "fastvit", 19),
        (lambda model, batch: reparameterize(model), "repvgg", 5),
        (fold_batch_norms, "timm_resnet", 15),
        (fold_layer_scales, "convnext", 9),
        (fold_layer_scales, "fastvit", 5),
        (fix_padding, "padded", 5),
        (lambda model, batch: linear_attention_pools(model), "resnet", 1),
    ],
)
def test_each_form_alone_is_exact(
    tower: Tower, batch: Tensor, form: Callable[[nn.Module, Tensor], int], name: str, count: int
) -> None:
    model = ImageEncoder(tower(name))
    before = model(batch)
    assert form(model, batch) == count
    assert change(model, before, batch) < EXACT


def test_fewer_operators_are_left_than_before(tower: Tower, batch: Tensor) -> None:
    model = ImageEncoder(tower("fastvit"))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    to_deployment_form(model, batch)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) < len(convolutions)
    assert not any(isinstance(m, deployment._LAYER_SCALES) for m in model.modules())


class Unfoldable(nn.Module):
    """A norm before the convolution, one behind an addition, and one whose convolution another operator reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.BatchNorm2d(3)
        self.third = nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x))
        return (self.second(y) + y + self.third(x + 1)).mean((2, 3))


@torch.no_grad()
def test_norms_that_no_convolution_can_take_in_become_factor_and_offset(batch: Tensor) -> None:
    torch.manual_seed(0)
    model = Unfoldable().eval()
    for norm in (model.first, model.second, model.third):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    before = model(batch)
    assert fold_batch_norms(model, batch) == 3
    assert all(isinstance(m, ChannelAffine) for m in (model.first, model.second, model.third))
    assert change(model, before, batch) < EXACT


def test_a_layer_scale_too_small_for_fp16_stays(tower: Tower, batch: Tensor) -> None:
    model = ImageEncoder(tower("convnext"))
    for module in model.modules():
        if isinstance(getattr(module, "gamma", None), nn.Parameter):
            module.gamma.data.fill_(1e-5)
    assert fold_layer_scales(model, batch) == 0


def test_a_form_that_changes_the_function_is_refused(
    tower: Tower, batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail."""

    def wrong(model: nn.Module) -> int:
        replace_module(model, "trunk.act3", nn.Hardtanh())
        return 1

    monkeypatch.setattr(deployment, "reparameterize", wrong)
    with pytest.raises(RuntimeError, match=r"deployment form changed the model's output by .*allowed 1e-05"):
        to_deployment_form(ImageEncoder(tower("resnet")), batch)


def test_a_sound_form_is_not_refused_for_the_rounding_of_sums(batch: Tensor) -> None:
    """A convolution's large offset is taken away again by its BatchNorm: in float32 hardly any digit of it is left."""
    conv, norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
    nn.init.constant_(conv.bias, 1000.0)
    norm.running_mean.fill_(1000.0)
    model = nn.Sequential(conv, norm, nn.ReLU()).eval().requires_grad_(False)
    before = model(batch)
    assert to_deployment_form(model, batch) == ["1 BatchNorms"]
    assert change(model, before, batch) > EXACT


class OnlyFloat32(nn.Module):
    """Makes a float32 tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) @ torch.eye(62)


def test_a_model_that_runs_in_float32_alone_is_checked_in_it(batch: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_deployment_form(OnlyFloat32().eval().requires_grad_(False), batch) == ["1 BatchNorms"]

    def wrong(model: nn.Module) -> int:
        model.conv.bias.data += 1
        return 1

    monkeypatch.setattr(deployment, "reparameterize", wrong)
    with pytest.raises(RuntimeError, match="deployment form changed the model's output"):
        to_deployment_form(OnlyFloat32().eval().requires_grad_(False), batch)


def test_a_tower_without_any_of_them_is_left_alone(batch: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Flatten(), nn.Linear(512, 4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert to_deployment_form(model, batch) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
