"""Quantizable modules, the rule that swaps them in, and the phase they run in."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as PlainTimmAttention
from torch import Tensor, nn

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize
from p4q_edge.quant.observers import ChannelRange, MagnitudeHistogram, activation_scale, weight_scale
from p4q_edge.quant.products import AttentionProducts
from p4q_edge.quant.scheme import QuantScheme


class Phase(enum.Enum):
    """What a quantizable module does with its input."""

    FLOAT = "float"
    RANGING = "ranging"
    CALIBRATING = "calibrating"
    QUANTIZED = "quantized"


class QuantLinear(nn.Module):
    """A linear layer that runs in float, observes its input, or runs fake-quantized.

    Attributes:
        weight: ``(out_features, in_features)`` float32.
        bias: ``(out_features,)`` or None.
        weight_scale: ``(out_features,)`` float32 buffer.
        integers: int8 ``(out_features, in_features)`` where the rounding was chosen; None rounds to the nearest.
        input_scale: ``()`` float32 buffer; 0 until calibrated.
        dynamic: while the layer itself is learned, scales follow the weight and the batch at each step;
            `freeze` ends that.
        float_prefix: leading tokens, ``x[..., :float_prefix, :]``, that are neither observed nor quantized.
    """

    weight_scale: Tensor
    integers: Tensor | None
    input_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: QuantScheme) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone().float())
        self.scheme = scheme
        self.phase = Phase.FLOAT
        self.dynamic = False
        self.float_prefix = 0
        self.register_buffer("weight_scale", torch.ones(weight.shape[0]))
        self.register_buffer("integers", None)
        self.register_buffer("input_scale", torch.zeros(()))
        self.channel_range = ChannelRange()
        self.histogram: MagnitudeHistogram | None = None
        self._restored: Tensor | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: QuantScheme) -> "QuantLinear":
        """Take over weight and bias of a linear layer."""
        return cls(linear.weight, linear.bias, scheme)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def calibrated(self) -> bool:
        return bool(self.input_scale > 0)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        if self.phase is Phase.QUANTIZED:
            return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)
        if self.phase is Phase.RANGING:
            self.channel_range.observe(x[..., self.float_prefix :, :] if self.float_prefix else x)
        elif self.phase is Phase.CALIBRATING:
            if self.histogram is None:
                self.histogram = MagnitudeHistogram(self.channel_range.amax)
            self.histogram.observe(x[..., self.float_prefix :, :] if self.float_prefix else x)
        return F.linear(x, self.weight, self.bias)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input on its integer grid, as real values."""
        if self.float_prefix:
            split = self.float_prefix
            return torch.cat([x[..., :split, :], self._on_grid(x[..., split:, :])], dim=-2)
        return self._on_grid(x)

    def _on_grid(self, x: Tensor) -> Tensor:
        quant_min, quant_max = affine.activation_range(self.scheme.activation_bits)
        if self.dynamic:
            scale = affine.scale_for(affine.amax_of(x.detach(), affine.PerTensor()), quant_max)
        elif self.calibrated:
            scale = self.input_scale
        else:
            raise RuntimeError("this linear has no input scale yet; calibrate the model before Phase.QUANTIZED")
        return fake_quantize(x, scale, quant_min, quant_max)

    def quantized_weight(self) -> Tensor:
        """The weight on its integer grid, as real values, ``(out_features, in_features)``."""
        if self._restored is not None and not self.dynamic:
            return self._restored
        quant_min, quant_max = affine.weight_range(self.scheme.weight_bits)
        scale = self._follow_weight() if self.dynamic else self.weight_scale
        if self.integers is not None and not self.dynamic:
            restored = affine.dequantize(self.integers.to(scale.dtype), scale[:, None])
        else:
            restored = fake_quantize(self.weight, scale[:, None], quant_min, quant_max)
        if not (self.weight.requires_grad or scale.requires_grad):
            self._restored = restored
        return restored

    def integer_weight(self) -> Tensor:
        """int8 ``(out_features, in_features)``: what the exported graph stores."""
        if self.integers is not None:
            return self.integers.clone()
        quant_min, quant_max = affine.weight_range(self.scheme.weight_bits)
        q = affine.quantize(self.weight.detach(), self.weight_scale[:, None], quant_min, quant_max)
        return q.to(torch.int8)

    def set_weight(self, weight: Tensor) -> None:
        """Replace the weight; the scale is found again by the caller or by `scale_weight`."""
        self.weight.data = weight.detach().clone()
        self.integers = self._restored = None

    def set_integers(self, integers: Tensor | None, scale: Tensor) -> None:
        """Choose rounding, int8 ``(out_features, in_features)`` or None for nearest, and scale ``(out_features,)``."""
        self.integers, self.weight_scale, self._restored = integers, scale, None

    def scale_weight(self) -> None:
        """Choose the scale of each output channel from the present weight."""
        self.weight_scale = weight_scale(
            self.weight.detach(),
            bits=self.scheme.weight_bits,
            observer=self.scheme.weight_observer,
            percentile=self.scheme.percentile,
        )
        self.integers = self._restored = None

    def scale_input(self) -> None:
        """Choose the input scale from the histogram that calibration filled."""
        if self.histogram is None:
            raise RuntimeError("this linear saw no calibration batch; was it reached by the forward pass?")
        self.input_scale = activation_scale(self.histogram, self.scheme, bits=self.scheme.activation_bits)

    def forget_observations(self) -> None:
        """Drop ranges and histogram, before a new calibration."""
        self.channel_range = ChannelRange()
        self.histogram = None

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        stored = state.get(f"{prefix}integers")
        self.integers = None if stored is None else torch.empty_like(stored)
        super()._load_from_state_dict(state, prefix, *args)
        self._restored = None

    def _follow_weight(self) -> Tensor:
        _, quant_max = affine.weight_range(self.scheme.weight_bits)
        return affine.scale_for(affine.amax_of(self.weight.detach(), affine.PerAxis(0)), quant_max)


class Attention(nn.Module):
    """Batch-first multi-head self-attention with one QKV linear, in place of ``nn.MultiheadAttention``.

    The factor ``1/sqrt(head_size)`` is folded into the query rows of the QKV linear, which leaves the integer grid
    of a per-channel quantized weight unchanged.

    Attributes:
        products: grids of query, key, softmax and value; None leaves the products in high precision.
    """

    def __init__(self, in_proj: QuantLinear, out_proj: QuantLinear, num_heads: int) -> None:
        super().__init__()
        self.in_proj = in_proj
        self.out_proj = out_proj
        self.num_heads = num_heads
        self.phase = Phase.FLOAT
        self.products: AttentionProducts | None = None

    @classmethod
    def from_multihead(cls, attention: nn.MultiheadAttention, scheme: QuantScheme) -> "Attention":
        """Take over the weights of a self-attention whose query, key and value share one width."""
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("expected an nn.MultiheadAttention with one in_proj_weight and no bias_k or zero_attn")
        joint = attention.in_proj_weight.detach(), attention.in_proj_bias
        return cls._from_joint(*joint, attention.out_proj, attention.num_heads, scheme)

    @classmethod
    def _from_joint(
        cls, weight: Tensor, bias: Tensor | None, out: nn.Linear, num_heads: int, scheme: QuantScheme
    ) -> "Attention":
        width = weight.shape[0] // 3
        factor = torch.ones(3 * width)
        factor[:width] = (width // num_heads) ** -0.5
        own = scheme.for_attention()
        bias = None if bias is None else bias.detach() * factor
        return cls(QuantLinear(weight * factor[:, None], bias, own), QuantLinear.from_linear(out, own), num_heads)

    @property
    def head_size(self) -> int:
        return self.in_proj.out_features // (3 * self.num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Self-attention over ``(N, L, D)``; takes the keywords with which open_clip calls the torch module.

        Raises:
            ValueError: key or value differ from the query, or attention weights are asked for.
        """
        if need_weights or (key is not None and key is not query) or (value is not None and value is not query):
            raise ValueError("Attention computes self-attention only: key and value must be the query itself")
        q, k, v = self.project(query)
        return self.attend(q, k, v, attn_mask), None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of ``(N, L, D)``, each ``(N, heads, L, D / heads)``; the query is already scaled."""
        n, length, width = x.shape
        q, k, v = self.in_proj(x).split(width, dim=-1)
        shape = (n, length, self.num_heads, width // self.num_heads)
        return q.view(shape).transpose(1, 2), k.view(shape).transpose(1, 2), v.view(shape).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Softmax attention and output projection, ``(N, heads, L, head_size) -> (N, L, D)``."""
        return self.out_proj(self.mix(*self.operands(q, k, v), attn_mask))  # type: ignore[no-any-return]

    def operands(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as the products take them, each ``(N, heads, L, head_size)``: observed, or on grids."""
        if self.products is not None and self.phase is Phase.RANGING:
            self.products.observe_ranges(q, k, v)
        elif self.products is not None and self.phase is Phase.CALIBRATING:
            self.products.observe_magnitudes(q, k, v)
        elif self.products is not None and self.phase is Phase.QUANTIZED:
            q, k, v = self.products.on_grid(q, k, v)
        return q, k, v

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        *,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Softmax attention of `operands`, without the output projection: ``(N, L, D)``.

        Args:
            before: keys and values that every query sees besides its own, each ``(heads, P, head_size)``; one copy
                serves all N.
        """
        scores = q @ k.transpose(-2, -1)  # (N, heads, L, L)
        if attn_mask is not None:
            scores = scores + attn_mask
        if before is not None:
            scores = torch.cat([torch.einsum("nhqc,hkc->nhqk", q, before[0]), scores], dim=-1)
        weights = scores.softmax(dim=-1)
        if self.products is not None and self.phase is Phase.QUANTIZED:
            weights = self.products.softmax_on_grid(weights)
        if before is None:
            mixed = weights @ v  # (N, heads, L, head_size)
        else:
            split = before[1].shape[1]
            mixed = torch.einsum("nhqk,hkc->nhqc", weights[..., :split], before[1]) + weights[..., split:] @ v
        return mixed.transpose(1, 2).flatten(2)


class TimmAttention(Attention):
    """The same in place of ``timm.layers.Attention``, which returns the result alone."""

    @classmethod
    def from_timm(cls, attention: PlainTimmAttention, scheme: QuantScheme) -> Attention:
        """Take over the weights of an attention for which `is_plain` holds."""
        qkv = attention.qkv
        return cls._from_joint(qkv.weight.detach(), qkv.bias, attention.proj, attention.num_heads, scheme)

    @staticmethod
    def is_plain(module: nn.Module) -> bool:
        """Whether a module is timm's attention without norms or gate of its own."""
        return (
            type(module) is PlainTimmAttention
            and all(isinstance(norm, nn.Identity) for norm in (module.q_norm, module.k_norm, module.norm))
            and module.gate is None
            and module.attn_dim == module.qkv.in_features
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Self-attention over ``(N, L, D)``; takes the keywords with which timm calls its own.

        Raises:
            ValueError: a causal attention, which no image tower has.
        """
        if is_causal:
            raise ValueError("expected attention over all tokens, got a causal one")
        return super().forward(x, attn_mask=attn_mask)[0]


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """All quantizable linears of a model by dotted path, in order of definition."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}


def attentions(model: nn.Module) -> dict[str, Attention]:
    """All attentions of a model that `quantize_modules` swapped in, by dotted path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attention)}


def quant_products(model: nn.Module) -> dict[str, AttentionProducts]:
    """The quantized attention products of a model, by the dotted path of their attention."""
    return {name: a.products for name, a in attentions(model).items() if a.products is not None}


def quantize_modules(
    model: nn.Module,
    scheme: QuantScheme,
    *,
    cross_attention: frozenset[str],
    attention_owners: frozenset[str] = frozenset(),
) -> list[str]:
    """Swap every linear and self-attention of `model` for its quantizable form, in place.

    Modules are chosen by type, not by the names of one architecture. Attention modules named in
    `cross_attention`, and paths that the scheme keeps in float, are left alone. Linears of the modules named in
    `attention_owners` get the scheme's bits for attentions.

    Returns:
        Paths of the linears and attentions that stay in high precision.
    """
    kept: list[str] = []
    for path, module in list(model.named_modules()):
        if any(path == k or path.startswith(k + ".") for k in kept):
            continue
        plain_timm = TimmAttention.is_plain(module)
        if not (plain_timm or isinstance(module, nn.MultiheadAttention | nn.Linear)):
            continue
        multihead = isinstance(module, nn.MultiheadAttention)
        if scheme.keeps_float(path) or (multihead and (path in cross_attention or module.in_proj_weight is None)):
            kept.append(path)
        elif plain_timm:
            replace_module(model, path, TimmAttention.from_timm(module, scheme))
        elif isinstance(module, nn.Linear) and not _inside_attention(model, path):
            own = scheme.for_attention() if path.rpartition(".")[0] in attention_owners else scheme
            replace_module(model, path, QuantLinear.from_linear(module, own))
        elif isinstance(module, nn.MultiheadAttention):
            replace_module(model, path, Attention.from_multihead(module, scheme))
    return kept


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at the dotted path."""
    parent_path, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent_path), name, new)


def set_phase(model: nn.Module, phase: Phase) -> None:
    """Put every quantizable linear and attention of the model into one phase."""
    for module in _phased(model):
        module.phase = phase


@contextmanager
def running_in(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Run the model in a phase for the length of a ``with`` block, then restore each module's own."""
    before = [(module, module.phase) for module in _phased(model)]
    set_phase(model, phase)
    try:
        yield
    finally:
        for module, own in before:
            module.phase = own


def _phased(model: nn.Module) -> list[QuantLinear | Attention]:
    return [module for module in model.modules() if isinstance(module, QuantLinear | Attention)]


def _inside_attention(model: nn.Module, path: str) -> bool:
    parent, _, _ = path.rpartition(".")
    return isinstance(model.get_submodule(parent), Attention | nn.MultiheadAttention)
