"""The text side with embeddings as input, so that context vectors can take the place of word embeddings."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from p4q_edge.quant.modules import Attention, QuantLinear, attentions, quantize_modules
from p4q_edge.quant.products import AttentionProducts
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.errors import UsageError


class TextTower(nn.Module):
    """Text tower of an open_clip model, frozen: token embeddings ``(texts, L, width)`` to features ``(texts, dim)``.

    Attributes:
        causal: whether tokens after the end of a text cannot influence it, so that texts may be cut there.
        width: of the token embeddings.
        context_length: longest text in tokens.
    """

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: nn.Module
    attn_mask: Tensor | None
    pool_type: str
    eos_id: int | None

    def __init__(self, clip: nn.Module, scheme: QuantScheme) -> None:
        super().__init__()
        source: Any = clip.text if hasattr(clip, "text") else clip
        needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        missing = [name for name in needed if not hasattr(source, name)]
        if missing or getattr(source, "cls_emb", None) is not None:
            raise UsageError(
                f"prompts can be learned for open_clip's own text transformer; {type(source).__name__} has no "
                f"{', '.join(missing) or 'plain end-of-text pooling'}; set learn.prompts = false"
            )
        self.token_embedding = source.token_embedding
        self.positional_embedding = source.positional_embedding
        self.transformer = copy.deepcopy(source.transformer)
        self.ln_final = source.ln_final
        self.text_projection = _projection(source.text_projection, scheme)
        self.register_buffer("attn_mask", source.attn_mask, persistent=False)
        self.pool_type = getattr(source, "pool_type", getattr(clip, "text_pool_type", "argmax"))
        self.eos_id = getattr(source, "eos_id", getattr(clip, "text_eos_id", None))
        quantize_modules(self.transformer, scheme, cross_attention=frozenset())
        if scheme.quantize_attention:
            for attention in attentions(self.transformer).values():
                attention.products = AttentionProducts(scheme)
        if self.causal:
            # The start token draws outliers a hundred times the rest; a constant may stay in high precision.
            for module in self.transformer.modules():
                if isinstance(module, QuantLinear | AttentionProducts):
                    module.float_prefix = 1
        self.requires_grad_(False)

    @property
    def causal(self) -> bool:
        return self.attn_mask is not None and self.pool_type in ("argmax", "eos")

    @property
    def width(self) -> int:
        return int(self.token_embedding.weight.shape[1])

    @property
    def context_length(self) -> int:
        return int(self.positional_embedding.shape[0])

    def end_index(self, tokens: Tensor) -> Tensor:
        """Position whose output is the text's feature, ``(texts,)`` int64, for tokens ``(texts, L)``."""
        if self.pool_type == "argmax":
            return tokens.argmax(dim=-1)
        if self.pool_type == "eos":
            return torch.eq(tokens, self.eos_id or 0).int().argmax(dim=-1)
        if self.pool_type == "first":
            return torch.zeros(len(tokens), dtype=torch.long)
        if self.pool_type == "last":
            return torch.full((len(tokens),), tokens.shape[1] - 1)
        raise UsageError(f"text pooling {self.pool_type!r} is not supported; expected argmax, eos, first or last")

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Features of texts given as token embeddings.

        Args:
            embeddings: ``(texts, L, width)`` with L at most `context_length`.
            end: ``(texts,)`` int64, the position that is pooled.

        Returns:
            ``(texts, dim)``, not normalized.
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.transformer(x, attn_mask=mask)  # (texts, L, width)
        return self._pool(x, end)

    def forward_shared(self, prefix: Tensor, suffixes: Tensor, end: Tensor) -> Tensor:
        """Features of texts that share their first tokens, with the prefix computed once.

        Causal attention keeps the prefix independent of what follows, so its keys and values serve all texts.

        Args:
            prefix: ``(P, width)`` embeddings of the shared tokens.
            suffixes: ``(texts, S, width)`` embeddings of what follows.
            end: ``(texts,)`` int64, the pooled position within the whole text.

        Returns:
            ``(texts, dim)``, equal to `forward` on the joined texts.
        """
        split, length = prefix.shape[0], prefix.shape[0] + suffixes.shape[1]
        assert self.attn_mask is not None
        mask = self.attn_mask[:length, :length]
        head = (prefix + self.positional_embedding[:split])[None]  # (1, P, width)
        tail = suffixes + self.positional_embedding[split:length]  # (texts, S, width)
        for block in self._blocks:
            head, tail = _shared_block(block, head, tail, mask)
        return self._pool(tail, end - split)

    @property
    def shares_prefix(self) -> bool:
        """Whether `forward_shared` fits this tower: causal, and made of open_clip's plain residual blocks."""
        return self.causal and all(type(block) is ResidualAttentionBlock for block in self._blocks)

    @property
    def _blocks(self) -> list[Any]:
        return list(getattr(self.transformer, "resblocks", ()))

    def embed(self, tokens: Tensor) -> Tensor:
        """Word embeddings ``(texts, L, width)`` of tokens ``(texts, L)``."""
        embedded: Tensor = self.token_embedding(tokens)
        return embedded

    def encode(self, tokens: Tensor) -> Tensor:
        """Features ``(texts, dim)`` of tokens ``(texts, context_length)``, cut at the longest text where causal."""
        end = self.end_index(tokens)
        length = int(end.max()) + 1 if self.causal else tokens.shape[1]
        features: Tensor = self(self.embed(tokens[:, :length]), end)
        return features

    def _pool(self, x: Tensor, end: Tensor) -> Tensor:
        pooled = self.ln_final(x)[torch.arange(len(x)), end]  # (texts, width)
        projected: Tensor = self.text_projection(pooled)
        return projected


def _projection(source: object, scheme: QuantScheme) -> nn.Module:
    if source is None:
        return nn.Identity()
    if isinstance(source, nn.Linear):
        return QuantLinear.from_linear(source, scheme)
    assert isinstance(source, Tensor)
    return QuantLinear(source.T.contiguous(), None, scheme)


def _shared_block(block: ResidualAttentionBlock, head: Tensor, tail: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    attention: Attention = block.attn
    split, texts = head.shape[1], tail.shape[0]
    q_head, k_head, v_head = attention.project(block.ln_1(head))
    q_tail, k_tail, v_tail = attention.project(block.ln_1(tail))
    keys = torch.cat([k_head.expand(texts, -1, -1, -1), k_tail], dim=2)
    values = torch.cat([v_head.expand(texts, -1, -1, -1), v_tail], dim=2)
    head = head + block.ls_1(attention.attend(q_head, k_head, v_head, mask[:split, :split]))
    tail = tail + block.ls_1(attention.attend(q_tail, keys, values, mask[split:, :]))
    return head + block.ls_2(block.mlp(block.ln_2(head))), tail + block.ls_2(block.mlp(block.ln_2(tail)))


@torch.no_grad()
def normalized_mean(features: Tensor) -> Tensor:
    """Normalized mean of normalized features: ``(templates, dim)`` to ``(dim,)``."""
    return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)
