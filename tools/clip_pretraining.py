"""What the tools that pre-train small CLIPs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import open_clip
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer


def muon_and_adamw(model: open_clip.CLIP, *, matrix_lr: float, other_lr: float, weight_decay: float) -> list[Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for all else.

    In minutes on a CPU, Muon gets a small transformer further than AdamW alone. Each parameter group
    keeps its peak learning rate under ``"peak"``, for a schedule to scale.

    Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; step size
    matched to AdamW's as in J. Liu et al., Muon is Scalable for LLM Training, arXiv:2502.16982.
    """
    # torch is imported here so that `p4q_edge.demo` can be listed without it.
    from torch.optim import AdamW, Muon

    matrices: list[Parameter] = []
    others: list[Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if "resblocks" in name and parameter.ndim == 2 else others).append(parameter)
    muon = Muon([{"params": matrices, "peak": matrix_lr}], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW([{"params": others, "peak": other_lr}], weight_decay=weight_decay / 10, betas=(0.9, 0.98))
    return [muon, adamw]


def encode_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Text features of token ids that were cut behind the longest end of text.

    open_clip's ``encode_text`` wants the whole context, which is mostly padding; attention is causal, so
    what stands behind the end has no effect.

    Args:
        model: A CLIP with a causal text tower.
        tokens: (captions, length) int64.

    Returns:
        (captions, embed_dim), not normalized.
    """
    import torch

    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # (captions, length, width)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    features: Tensor = x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection
    return features
