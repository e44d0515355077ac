"""Deployment forms: the same function of an image tower with fewer operators, before anything is rounded or quantized.

Each form is exact in real arithmetic. `to_deployment_form` applies all of them and checks that the outputs stayed.
"""

import copy
import logging

import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import LayerScale
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.layer_scale import LayerScale as TimmLayerScale
from timm.layers.layer_scale import LayerScale2d
from timm.layers.padding import get_same_padding
from timm.models.convnext import ConvNeXtBlock
from timm.models.fastvit import LayerScale2d as FastVitLayerScale
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.fx import Node

from p4q_edge.quant import AttentionPool, Flow, affine, kind_of, module_of, readers, replace_module, source, trace_flow

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest relative change of the output that rounding to float32 may cause, that of folded weights if float64 runs."""

LEAST_MAGNITUDE = 127 * affine.SMALLEST_NORMAL_FP16
"""A channel whose largest weight is below it would need a scale that FP16 holds as a subnormal number only."""

_LAYER_SCALES = (LayerScale, LayerScale2d, TimmLayerScale, FastVitLayerScale)
_REPARAMETERIZING = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm calls the methods that join branches."""

_MOVES = frozenset({"aten.permute.default", "aten.transpose.int", "aten.view.default", "aten.reshape.default"})


class ChannelAffine(nn.Module):
    """A factor and an offset for each channel: a BatchNorm that no convolution can take in.

    Attributes:
        factor, offset: `(channels, 1, ...)`, broadcast over what follows the channels.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, *, rank: int) -> None:
        super().__init__()
        factor, offset = _affine_of(norm)
        shape = (-1, *(1,) * (rank - 2))
        self.register_buffer("factor", factor.float().view(shape))
        self.register_buffer("offset", offset.float().view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, ...)`."""
        return x * self.factor + self.offset


@torch.no_grad()
def to_deployment_form(model: nn.Module, sample: Tensor) -> list[str]:
    """Bring a float model in evaluation mode into its deployment form, in place.

    Args:
        model: takes `sample`, `(N, 3, H, W)` of at least two images, and returns one tensor.

    Returns:
        What was done, in words, with counts.

    Raises:
        RuntimeError: the output changed by more than rounding to float32.
    """
    before = _in_float64(model, sample)
    counts = {
        "reparameterized blocks": reparameterize(model),
        "attention pools": linear_attention_pools(model),
        "pools of one pixel": drop_unit_pools(model),
        "paddings": fix_padding(model, sample),
        "BatchNorms": fold_batch_norms(model, sample),
        "layer scales": fold_layer_scales(model, sample),
    }
    done = [f"{count} {name}" for name, count in counts.items() if count]
    change = float((_in_float64(model, sample) - before).abs().max() / before.abs().max())
    if not change < TOLERANCE:
        raise RuntimeError(
            f"the deployment form changed the model's output by {change:.1e} of its maximum (allowed {TOLERANCE:.0e}). "
            "This is a fault of the exporter; report it with the model's name."
        )
    logger.info("deployment form: %s; output changed by %.1e", ", ".join(done) or "nothing to do", change)
    return done


def _in_float64(model: nn.Module, sample: Tensor) -> Tensor:
    """Return the model's output without the rounding of its sums, which deep models amplify.

    Where a model holds or makes tensors that no other type takes part with, it is the output in float32.
    """
    output: Tensor
    try:
        output = copy.deepcopy(model).double()(sample.double())
    except (RuntimeError, TypeError) as error:
        logger.info("the deployment form is checked in float32, as the model does not run in float64: %s", error)
        output = model(sample)
    return output


def reparameterize(model: nn.Module) -> int:
    """Join the branches of timm's blocks that are trained apart (MobileOne, FastViT, RepVGG); return how many.

    Source: RepVGG, arXiv:2101.03697; MobileOne, arXiv:2206.04040.
    """
    blocks = [m for m in model.modules() if any(hasattr(m, name) for name in _REPARAMETERIZING)]
    if blocks:
        reparameterize_model(model, inplace=True)
        model.eval().requires_grad_(False)  # timm makes new layers
    return len(blocks)


def drop_unit_pools(model: nn.Module) -> int:
    """Drop average pools of one pixel, as open_clip's ResNets have; return how many."""
    pools = [p for p, m in model.named_modules() if isinstance(m, nn.AvgPool2d) and _is_unit(m)]
    for path in pools:
        replace_module(model, path, nn.Identity())
    return len(pools)


def _is_unit(pool: nn.AvgPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride)
    return all(size in (1, (1, 1)) for size in sizes) and pool.padding in (0, (0, 0))


def linear_attention_pools(model: nn.Module) -> int:
    """Write the attention pools of open_clip's ResNets with linear layers; return how many."""
    pools = [(path, m) for path, m in model.named_modules() if isinstance(m, AttentionPool2d)]
    for path, pool in pools:
        replace_module(model, path, AttentionPool(pool))
    return len(pools)


@torch.no_grad()
def fix_padding(model: nn.Module, sample: Tensor) -> int:
    """Give convolutions that pad to the size of what they read ("same") numbers instead; return how many.

    A padding that is larger on one side is a layer of its own.
    """
    sizes: dict[str, tuple[int, int]] = {}
    dynamic = {path: m for path, m in model.named_modules() if type(m) is Conv2dSame}
    handles = [
        conv.register_forward_pre_hook(lambda m, args, path=path: sizes.update({path: args[0].shape[-2:]}))
        for path, conv in dynamic.items()
    ]
    try:
        if dynamic:
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    for path in sizes:
        replace_module(model, path, _padded(dynamic[path], sizes[path]))
    return len(sizes)


def _padded(conv: nn.Conv2d, size: tuple[int, int]) -> nn.Module:
    totals = [
        get_same_padding(side, conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis])
        for axis, side in enumerate(size)
    ]
    height, width = totals
    symmetric = height % 2 == 0 and width % 2 == 0
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=(height // 2, width // 2) if symmetric else 0,
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    if symmetric:
        return plain
    before = (width // 2, width - width // 2, height // 2, height - height // 2)
    return nn.Sequential(nn.ZeroPad2d(before), plain)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, sample: Tensor) -> int:
    """Fold BatchNorms into the convolutions in front of them, and write the others as factor and offset.

    Returns:
        How many there were.
    """
    norms = {p: m for p, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not norms:
        return 0
    flow = trace_flow(model, sample)
    found = 0
    for node in list(flow.of_kind("batch_norm")):
        path = module_of(node)
        if path not in norms:
            continue
        norm = norms[path]
        conv = _only_conv(source(node), flow, model) if flow.calls[path] == 1 else None
        if conv is not None:
            _fold_norm(conv, norm)
        operand = node.args[0]
        assert isinstance(operand, Node)
        rank = operand.meta["val"].ndim
        replace_module(model, path, _without(norm, None if conv is not None else ChannelAffine(norm, rank=rank)))
        found += 1
    return found


def _only_conv(node: Node | None, flow: Flow, model: nn.Module) -> nn.Conv2d | None:
    if node is None or kind_of(node) != "conv" or len(readers(node)) != 1:
        return None
    path = module_of(node)
    module = model.get_submodule(path)
    return module if isinstance(module, nn.Conv2d) and flow.calls[path] == 1 else None


def _affine_of(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Return factor and offset of each channel, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    offset = torch.zeros_like(factor)
    if norm.affine:
        factor, offset = factor * norm.weight.double(), norm.bias.double()
    return factor, offset - norm.running_mean.double() * factor


def _fold_norm(conv: nn.Conv2d, norm: nn.modules.batchnorm._BatchNorm) -> None:
    factor, offset = _affine_of(norm)
    bias = 0.0 if conv.bias is None else conv.bias.double()
    conv.weight = _constant(conv.weight.double() * affine.broadcast_scale(factor, conv.weight.ndim, affine.PerAxis(0)))
    conv.bias = _constant(bias * factor + offset)


def _without(norm: nn.modules.batchnorm._BatchNorm, rest: nn.Module | None) -> nn.Module:
    """Return what takes a norm's place; timm's carry an activation."""
    parts = [part for part in (rest, getattr(norm, "act", None)) if part is not None and type(part) is not nn.Identity]
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


@torch.no_grad()
def fold_layer_scales(model: nn.Module, sample: Tensor) -> int:
    """Fold layer scales into the convolution or linear in front; return how many.

    One stays where it would bring a channel below what FP16 and INT8 grids hold, as at initialization.
    """
    gammas = {p: m for p, m in model.named_modules() if isinstance(m, (*_LAYER_SCALES, ConvNeXtBlock))}
    if not any(getattr(m, "gamma", None) is not None for m in gammas.values()):
        return 0
    flow = trace_flow(model, sample)
    folded = 0
    for node in list(flow.of_kind("mul")):
        path = module_of(node)
        parameter = getattr(gammas.get(path), "gamma", None)
        if not isinstance(parameter, Tensor) or not _reads(node, f"{path}.gamma", flow):
            continue
        target = _scaled_module(node, flow, model)
        gamma = parameter.detach().double().flatten()
        if target is None or len(gamma) != target.weight.shape[0] or not _fold_gamma(target, gamma):
            continue
        if isinstance(gammas[path], ConvNeXtBlock):
            gammas[path].gamma = None
        else:
            replace_module(model, path, nn.Identity())
        folded += 1
    return folded


def _reads(node: Node, parameter: str, flow: Flow) -> bool:
    found = source(node, 1)
    while found is not None and str(found.target) in _MOVES:
        found = source(found)
    return found is not None and flow.parameters.get(found.name) == parameter


def _scaled_module(node: Node, flow: Flow, model: nn.Module) -> nn.Conv2d | nn.Linear | None:
    before = source(node)
    while before is not None and len(readers(before)) == 1 and str(before.target) in _MOVES:
        before = source(before)
    if before is None or kind_of(before) not in {"conv", "linear"} or len(readers(before)) != 1:
        return None
    path = flow.owner(before)
    module = model.get_submodule(path) if path else None
    return module if isinstance(module, nn.Conv2d | nn.Linear) and flow.calls[module_of(before)] == 1 else None


def _fold_gamma(module: nn.Conv2d | nn.Linear, gamma: Tensor) -> bool:
    weight = module.weight.double() * affine.broadcast_scale(gamma, module.weight.ndim, affine.PerAxis(0))
    if not bool((affine.amax_of(weight, affine.PerAxis(0)) >= LEAST_MAGNITUDE).all()):
        return False
    module.weight = _constant(weight)
    if module.bias is not None:
        module.bias = _constant(module.bias.double() * gamma)
    return True


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float(), requires_grad=False)
