"""The text side with embeddings as input, so that context vectors can take the place of word embeddings."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from p4q_edge.models.compute import device_of
from p4q_edge.models.huggingface_tower import HuggingFaceTower, is_huggingface
from p4q_edge.models.text_side import Prefix, TextSide
from p4q_edge.quant import Attention, AttentionProducts, QuantLinear, QuantScheme, attentions, quantize_modules
from p4q_edge.runtime.errors import UsageError


class TextTower(TextSide):
    """Text tower of an open_clip model, frozen: token embeddings `(texts, L, width)` to features `(texts, dim)`.

    Its texts are pooled at one position each.
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
        source = _text_module(clip)
        if missing := _missing(source):
            raise UsageError(
                f"prompts can be learned for open_clip's own text transformer; {type(source).__name__} has no "
                f"{', '.join(missing)}; set learn.prompts = false"
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
                attention.quantize_products(scheme)
        if self.causal:
            # The start token draws outliers a hundred times the rest; a constant may stay in high precision.
            for module in self._quantizing():
                module.skip_prefix(1)
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
        """Position whose output is the text's feature, `(texts,)` int64, for tokens `(texts, L)`."""
        if self.pool_type == "argmax":
            return tokens.argmax(dim=-1)
        if self.pool_type == "eos":
            return torch.eq(tokens, self.eos_id or 0).int().argmax(dim=-1)
        if self.pool_type == "first":
            return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        if self.pool_type == "last":
            return torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        raise UsageError(f"text pooling {self.pool_type!r} is not supported; expected argmax, eos, first or last")

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Return features of texts given as token embeddings.

        Args:
            embeddings: `(texts, L, width)` with L at most `context_length`.
            end: `(texts,)` int64, the position that is pooled.

        Returns:
            `(texts, dim)`, not normalized.
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.transformer(x, attn_mask=mask)  # (texts, L, width)
        return self._pool(x, end)

    def read_prefix(self, embeddings: Tensor) -> Prefix:
        """Run the tokens `(P, width)` that all texts begin with, once for all of them.

        Causal attention keeps them independent of what follows.
        """
        length = embeddings.shape[0]
        assert self.attn_mask is not None
        mask = self.attn_mask[:length, :length]
        x = (embeddings + self.positional_embedding[:length])[None]  # (1, P, width)
        blocks = []
        for block in self._blocks:
            attention: Attention = block.attn
            q, k, v = attention.operands(*attention.project(block.ln_1(x)))  # (1, heads, P, head_size)
            blocks.append((k[0], v[0]))
            x = x + block.ls_1(attention.out_proj(attention.mix(q, k, v, mask)))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return Prefix(length=length, blocks=tuple(blocks))

    def continue_prefix(self, prefix: Prefix, runs: Sequence[Tensor]) -> Tensor:
        """Return features of texts that all begin with `prefix`; equal to `forward` on the joined texts.

        All tokens go through the linears as one matrix, so that a short text costs no more than its own tokens. The
        last block is finished for the last token of each text only, as nothing else is read.

        Args:
            runs: what follows the prefix, texts of one length together, each `(texts, S, width)`.

        Returns:
            `(all texts, dim)`, not normalized, in the order of the runs.
        """
        assert self.attn_mask is not None
        start = prefix.length
        x = torch.cat([(r + self.positional_embedding[start : start + r.shape[1]]).flatten(0, 1) for r in runs])
        shapes = [(r.shape[0], r.shape[1]) for r in runs]
        with self._float_tokens(0):  # the start token is in the prefix
            for number, (block, before) in enumerate(zip(self._blocks, prefix.blocks, strict=True), 1):
                x = _continue_block(block, x, shapes, before, self.attn_mask, ends_only=number == len(prefix.blocks))
        projected: Tensor = self.text_projection(self.ln_final(x))
        return projected

    @property
    def shares_prefix(self) -> bool:
        """Whether `continue_prefix` fits this tower: causal, and made of open_clip's plain residual blocks."""
        return self.causal and all(type(block) is ResidualAttentionBlock for block in self._blocks)

    @property
    def _blocks(self) -> list[Any]:
        return list(getattr(self.transformer, "resblocks", ()))

    def embed(self, tokens: Tensor) -> Tensor:
        """Word embeddings `(texts, L, width)` of tokens `(texts, L)`."""
        embedded: Tensor = self.token_embedding(tokens.to(self.token_embedding.weight.device))
        return embedded

    def _pool(self, x: Tensor, end: Tensor) -> Tensor:
        pooled = x[torch.arange(len(x), device=x.device), end]  # (texts, width)
        projected: Tensor = self.text_projection(self.ln_final(pooled))
        return projected

    def _quantizing(self) -> list[QuantLinear | AttentionProducts]:
        return [m for m in self.transformer.modules() if isinstance(m, QuantLinear | AttentionProducts)]

    @contextmanager
    def _float_tokens(self, count: int) -> Iterator[None]:
        modules = self._quantizing()
        before = [module.float_prefix for module in modules]
        for module in modules:
            module.skip_prefix(count)
        try:
            yield
        finally:
            for module, own in zip(modules, before, strict=True):
                module.skip_prefix(own)


def make_text_side(clip: nn.Module, scheme: QuantScheme) -> TextSide:
    """Return the text tower that prompts of a model run through, quantized by a scheme once it is calibrated.

    Raises:
        UsageError: prompts cannot be learned through this tower.
    """
    if is_huggingface(_text_module(clip)):
        return HuggingFaceTower(clip, scheme)
    return TextTower(clip, scheme)


def encoder_of(clip: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the float text side of a model: tokens `(texts, context_length)` to features `(texts, dim)`.

    It computes what the model's own `encode_text` computes, without the padding where that cannot be seen.
    """
    source = _text_module(clip)
    if is_huggingface(source):
        return HuggingFaceTower(clip, QuantScheme()).encode
    if _missing(source):
        own: Callable[[Tensor], Tensor] = clip.encode_text  # type: ignore[assignment]
        device = device_of(clip)
        return lambda tokens: own(tokens.to(device))
    return TextTower(clip, QuantScheme()).encode


def _text_module(clip: Any) -> Any:
    return clip.text if hasattr(clip, "text") else clip


def _missing(source: Any) -> list[str]:
    """Return what a text module lacks of open_clip's own transformer."""
    needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    missing = [name for name in needed if not hasattr(source, name)]
    plain = getattr(source, "cls_emb", None) is None
    return missing or ([] if plain else ["plain end-of-text pooling"])


def _projection(source: object, scheme: QuantScheme) -> nn.Module:
    if source is None:
        return nn.Identity()
    if isinstance(source, nn.Linear):
        return QuantLinear.from_linear(source, scheme)
    assert isinstance(source, Tensor)
    return QuantLinear(source.T.contiguous(), None, scheme)


def _continue_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    shapes: Sequence[tuple[int, int]],
    before: tuple[Tensor, Tensor],
    mask: Tensor,
    *,
    ends_only: bool,
) -> Tensor:
    """Return one block on the tokens `(tokens, width)` of runs with these shapes `(texts, S)`.

    With `ends_only` the last token of each text comes out, `(texts, width)`, else all of them.
    """
    attention: Attention = block.attn
    parts = attention.operands(*attention.project(block.ln_1(x)[None]))  # each (1, heads, tokens, head_size)
    mixed = []
    for q, k, v in zip(*(_by_run(part[0], shapes) for part in parts), strict=True):
        length = k.shape[2]
        if ends_only:
            mixed.append(attention.mix(q[:, :, -1:], k, v, before=before).flatten(0, 1))
        else:
            mixed.append(attention.mix(q, k, v, mask[:length, :length], before=before).flatten(0, 1))
    if ends_only:
        x = torch.cat([run[:, 0, -1] for run in _by_run(x[None], shapes)])
    x = x + block.ls_1(attention.out_proj(torch.cat(mixed)))
    finished: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return finished


def _by_run(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """`(heads, tokens, head_size)` to one `(texts, heads, S, head_size)` for each run."""
    split = torch.split(x, [texts * length for texts, length in shapes], dim=1)
    size = x.shape[2]
    return [part.view(len(x), *shape, size).transpose(0, 1) for part, shape in zip(split, shapes, strict=True)]


@torch.no_grad()
def normalized_mean(features: Tensor) -> Tensor:
    """Normalized mean of normalized features: `(templates, dim)` to `(dim,)`."""
    return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)
