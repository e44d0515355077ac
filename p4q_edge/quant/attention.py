"""Attentions in quantizable form, in place of those of torch and timm."""

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as PlainTimmAttention
from torch import Tensor, nn

from p4q_edge.quant.attention_products import AttentionProducts
from p4q_edge.quant.linear import Phase, QuantLinear, running_in
from p4q_edge.quant.scheme import QuantScheme

PAIR = (Phase.FLOAT, Phase.QUANTIZED)


class Attention(nn.Module):
    """Batch-first multi-head self-attention with one QKV linear, in place of `nn.MultiheadAttention`.

    The factor `1/sqrt(head_size)` is folded into the query rows of the QKV linear, which leaves the integer grid
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

    def quantize_products(self, scheme: QuantScheme) -> None:
        """Give the products grids of their own, which are measured in the observing phases."""
        self.products = AttentionProducts(scheme).to(self.in_proj.weight.device)

    @classmethod
    def from_multihead(cls, attention: nn.MultiheadAttention, scheme: QuantScheme) -> "Attention":
        """Take over the weights of a plain self-attention whose query, key and value share one width."""
        if attention.in_proj_weight is None or not is_plain(attention):
            raise ValueError(
                "expected a batch-first nn.MultiheadAttention with one in_proj_weight and no other options"
            )
        joint = attention.in_proj_weight.detach(), attention.in_proj_bias
        return cls._from_joint(*joint, attention.out_proj, attention.num_heads, scheme)

    @classmethod
    def _from_joint(
        cls, weight: Tensor, bias: Tensor | None, out: nn.Linear, num_heads: int, scheme: QuantScheme
    ) -> "Attention":
        width = weight.shape[0] // 3
        factor = torch.ones(3 * width, device=weight.device)
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
        """Self-attention over `(N, L, D)`; takes the keywords with which open_clip calls the torch module.

        Raises:
            ValueError: key or value differ from the query, or attention weights are asked for.
        """
        if need_weights or (key is not None and key is not query) or (value is not None and value is not query):
            raise ValueError("Attention computes self-attention only: key and value must be the query itself")
        q, k, v = self.project(query)
        return self.attend(q, k, v, attn_mask), None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of `(N, L, D)`, each `(N, heads, L, D / heads)`; the query is already scaled."""
        n, length, width = x.shape
        q, k, v = self.in_proj(x).split(width, dim=-1)
        shape = (n, length, self.num_heads, width // self.num_heads)
        return q.view(shape).transpose(1, 2), k.view(shape).transpose(1, 2), v.view(shape).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Softmax attention and output projection, `(N, heads, L, head_size) -> (N, L, D)`."""
        if self.phase is Phase.PAIRED:
            halves = zip(PAIR, q.chunk(2), k.chunk(2), v.chunk(2), strict=True)
            return self.out_proj(torch.cat([self._mix_in(*half, attn_mask) for half in halves]))  # type: ignore[no-any-return]
        return self.out_proj(self.mix(*self.operands(q, k, v), attn_mask))  # type: ignore[no-any-return]

    def _mix_in(self, phase: Phase, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        with running_in(self, phase):
            return self.mix(*self.operands(q, k, v), attn_mask)

    def operands(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as the products take them, each `(N, heads, L, head_size)`: observed, or on grids."""
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
        """Softmax attention of `operands`, without the output projection: `(N, L, D)`.

        Args:
            before: keys and values that every query sees besides its own, each `(heads, P, head_size)`; one copy
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
    """The same in place of `timm.layers.Attention`, which returns the result alone."""

    @classmethod
    def from_timm(cls, attention: PlainTimmAttention, scheme: QuantScheme) -> Attention:
        """Take over the weights of an attention for which `is_plain` holds."""
        qkv = attention.qkv
        return cls._from_joint(qkv.weight.detach(), qkv.bias, attention.proj, attention.num_heads, scheme)

    @staticmethod
    def is_plain(module: nn.Module) -> bool:
        """Return whether a module is timm's attention without norms or gate of its own."""
        return (
            type(module) is PlainTimmAttention
            and all(isinstance(norm, nn.Identity) for norm in (module.q_norm, module.k_norm, module.norm))
            and getattr(module, "gate", None) is None  # newer than the rest of the class
            and module.qkv.out_features == 3 * module.qkv.in_features
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Self-attention over `(N, L, D)`; takes the keywords with which timm calls its own.

        Raises:
            ValueError: a causal attention, which no image tower has.
        """
        if is_causal:
            raise ValueError("expected attention over all tokens, got a causal one")
        return super().forward(x, attn_mask=attn_mask)[0]


class CrossAttention(nn.Module):
    """Batch-first attention to another tensor, in place of `nn.MultiheadAttention`: the pool of an image tower.

    Its four linears are quantizable; its products stay in high precision.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out_proj: nn.Linear, num_heads: int) -> None:
        super().__init__()
        self.query = query
        self.key = key
        self.value = value
        self.out_proj = out_proj
        self.num_heads = num_heads

    @classmethod
    def from_multihead(cls, attention: nn.MultiheadAttention) -> "CrossAttention":
        """Take over the weights of a plain attention whose query, key and value may have widths of their own."""
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.detach().chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        bias = attention.in_proj_bias
        biases = (None, None, None) if bias is None else bias.detach().chunk(3)
        query, key, value = (_linear(weight, part) for weight, part in zip(weights, biases, strict=True))
        return cls(query, key, value, attention.out_proj, attention.num_heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False) -> tuple[Tensor, None]:
        """`(N, Q, D)`, `(N, L, D_k)` and `(N, L, D_v)` to `(N, Q, D)`; takes open_clip's keywords.

        Raises:
            ValueError: attention weights are asked for.
        """
        if need_weights:
            raise ValueError("CrossAttention returns no attention weights")
        mixed = F.scaled_dot_product_attention(
            self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None

    def _heads(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        return x.view(n, length, self.num_heads, width // self.num_heads).transpose(1, 2)


def is_plain(attention: nn.MultiheadAttention) -> bool:
    """Return whether torch's attention has the batch first and neither added keys nor added zeros."""
    return bool(attention.batch_first and attention.bias_k is None and not attention.add_zero_attn)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def attentions(model: nn.Module) -> dict[str, Attention]:
    """Return all attentions of a model that `quantize_modules` swapped in, by dotted path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attention)}


def quant_products(model: nn.Module) -> dict[str, AttentionProducts]:
    """Return the quantized attention products of a model, by the dotted path of their attention."""
    return {name: a.products for name, a in attentions(model).items() if a.products is not None}
