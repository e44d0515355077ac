"""Exact folds: per-channel asymmetric ranges at the cost of per-tensor symmetric quantization.

A channel c with observed range [low, high] has centre m = (low + high) / 2 and half range h = (high - low) / 2. With
r = (h / mean(h))**t the activation x is replaced by (x - m) / r, whose channels share one range, and the linears that
read it compensate: W' = W diag(r), b' = b + W m. In real arithmetic nothing changes.

Source: the channel equalization of RepQ-ViT, arXiv:2212.08254, section 3.2, with the shift of Outlier Suppression+,
arXiv:2304.09145, onto symmetric ranges.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p4q_edge.quant.attention import Attention
from p4q_edge.quant.linear import Phase, QuantLinear, memory_of, quant_linears, running_in
from p4q_edge.quant.observers import ChannelRange
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

DEAD_CHANNEL = 1e-3
"""Half ranges below this share of their mean are raised to it: a dead channel must not get an endless gain."""

FOLD_TOLERANCE = 1e-3
"""Largest relative change of the model's output that float32 rounding may cause in a fold."""


@dataclass(frozen=True, kw_only=True)
class ChannelFold:
    """Centre m and ratio r of each channel, both `(channels,)` float32."""

    centre: Tensor
    ratio: Tensor

    @classmethod
    def from_range(cls, observed: ChannelRange, strength: float) -> "ChannelFold":
        """Centre and ratio of an observed activation; ratio `(h / mean(h)) ** strength`."""
        low, high = observed.require()
        half = (high - low) / 2
        half = half.clamp(min=float(half.mean()) * DEAD_CHANNEL + torch.finfo(torch.float32).tiny)
        return cls(centre=(low + high) / 2, ratio=(half / half.mean()) ** strength)

    def into_consumer(self, linear: QuantLinear) -> None:
        """Make a linear that read x compute the same from (x - m) / r."""
        shift = linear.weight.detach() @ self.centre
        bias = torch.zeros_like(shift) if linear.bias is None else linear.bias.detach()
        linear.bias = nn.Parameter(bias + shift, requires_grad=False)
        linear.set_weight(linear.weight.detach() * self.ratio)
        self.into_range(linear.channel_range)

    def into_range(self, observed: ChannelRange) -> None:
        """Move an observed range to the folded activation."""
        low, high = observed.require()
        observed.minimum, observed.maximum = (low - self.centre) / self.ratio, (high - self.centre) / self.ratio

    def into_norm(self, norm: nn.LayerNorm) -> None:
        """Make a LayerNorm emit (x - m) / r instead of x."""
        norm.weight.data = norm.weight.detach() / self.ratio
        norm.bias.data = (norm.bias.detach() - self.centre) / self.ratio

    def into_values(self, attention: Attention) -> None:
        """Make the value rows of a QKV linear emit (v - m) / r; softmax rows sum to 1, so the output follows."""
        linear = attention.in_proj
        width = linear.out_features // 3
        weight = linear.weight.detach().clone()
        weight[2 * width :] /= self.ratio[:, None]
        bias = weight.new_zeros(3 * width) if linear.bias is None else linear.bias.detach().clone()
        bias[2 * width :] = (bias[2 * width :] - self.centre) / self.ratio
        linear.bias = nn.Parameter(bias, requires_grad=False)
        linear.set_weight(weight)


@torch.no_grad()
def fold_channels(model: nn.Module, scheme: QuantScheme, sample: Tensor) -> list[str]:
    """Apply every fold that the scheme asks for and the model allows, in place.

    The linears must have observed their inputs in `Phase.RANGING`.

    Args:
        model: takes `sample` and returns one tensor.
        sample: a batch used to find which linears read which LayerNorm, and to check that nothing changed.

    Returns:
        Paths of the folded producers (LayerNorms and attentions).

    Raises:
        RuntimeError: the output changed by more than float rounding, so a producer has a reader that the rule missed.
    """
    with running_in(model, Phase.FLOAT):
        before = model(sample)
        folded = []
        if scheme.fold_norm:
            folded += _fold_norms(model, scheme, sample)
        if scheme.fold_value:
            folded += _fold_values(model, scheme)
        after = model(sample)
    error = float((after - before).abs().max() / before.abs().max())
    if not error < FOLD_TOLERANCE:
        raise RuntimeError(
            f"the channel folds changed the model's output by {error:.1e} of its maximum (allowed {FOLD_TOLERANCE}); "
            "set fold_norm = false and fold_value = false in the recipe's [quantization]"
        )
    logger.info("folded %s, output changed by %.1e", number_of(len(folded), "producer"), error)
    return folded


def _fold_norms(model: nn.Module, scheme: QuantScheme, sample: Tensor) -> list[str]:
    folded = []
    for path, readers in norm_readers(model, sample).items():
        norm = model.get_submodule(path)
        assert isinstance(norm, nn.LayerNorm)
        fold = ChannelFold.from_range(_joint_range(r.channel_range for r in readers), scheme.fold_strength)
        fold.into_norm(norm)
        for reader in readers:
            fold.into_consumer(reader)
        folded.append(path)
    return folded


def _fold_values(model: nn.Module, scheme: QuantScheme) -> list[str]:
    folded = []
    for path, module in model.named_modules():
        if isinstance(module, Attention) and module.out_proj.channel_range.minimum is not None:
            fold = ChannelFold.from_range(module.out_proj.channel_range, scheme.fold_strength)
            fold.into_values(module)
            fold.into_consumer(module.out_proj)
            if module.products is not None:
                fold.into_range(module.products.value.channel_range)
            folded.append(path)
    return folded


def _joint_range(ranges: Iterable[ChannelRange]) -> ChannelRange:
    joint = ChannelRange()
    for observed in ranges:
        low, high = observed.require()
        joint.observe(torch.stack([low, high]))
    return joint


def norm_readers(model: nn.Module, sample: Tensor) -> dict[str, list[QuantLinear]]:
    """Return which quantizable linears read the output of which LayerNorm, found by watching one forward pass.

    A linear reads a norm when its input shares the norm's output memory (the tensor itself, or a view such as one
    token of it) and its channels are the norm's. Norms without affine parameters, with an output that no linear
    reads, or with one that another module reads too, are left out.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its memory is not given to another
    readers: dict[str, list[QuantLinear]] = {}
    strangers: set[str] = set()
    paths = {id(m): p for p, m in model.named_modules()}

    def after_norm(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[memory_of(output)] = (paths[id(module)], output)

    def before_leaf(module: nn.Module, inputs: tuple[object, ...]) -> None:
        first = inputs[0] if inputs else None
        if not isinstance(first, Tensor):
            return
        path, source = outputs.get(memory_of(first), ("", None))
        if source is None:
            return
        if isinstance(module, QuantLinear) and first.shape[-1] == source.shape[-1]:
            if module not in readers.setdefault(path, []):
                readers[path].append(module)
        else:
            strangers.add(path)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None and module.bias is not None:
            handles.append(module.register_forward_hook(after_norm))
        elif not isinstance(module, nn.Identity | nn.Dropout) and next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(before_leaf))
    try:
        model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return {path: linears for path, linears in readers.items() if path not in strangers}


@torch.no_grad()
def correct_biases(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Absorb into each bias the mean output error that quantizing the weight and input of that linear causes.

    b' = b + W E[x] - Q(W) E[Q(x)], with x as seen in the quantized model, so errors of earlier layers count.

    Source: Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.2 (empirical form).
    """
    linears = quant_linears(model)
    sums: dict[str, Tensor] = {
        name: lin.weight.new_zeros(lin.out_features, dtype=torch.float64) for name, lin in linears.items()
    }
    rows = dict.fromkeys(linears, 0)

    def watch(name: str, linear: QuantLinear, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        exact = linear.gained(flat) @ linear.weight.detach().T
        actual = linear.quantized_input(flat) @ linear.quantized_weight().T
        sums[name] += (exact - actual).double().sum(0)
        rows[name] += flat.shape[0]

    handles = [
        lin.register_forward_pre_hook(lambda m, args, name=name: watch(name, m, args[0]))
        for name, lin in linears.items()
    ]
    try:
        with running_in(model, Phase.QUANTIZED):
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, linear in linears.items():
        if rows[name]:
            error = (sums[name] / rows[name]).float()
            linear.correct_bias(error if linear.bias is None else linear.bias.detach() + error)
