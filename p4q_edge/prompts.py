"""Prompts: hand-written templates, and learned context vectors in front of the class names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.runtime.errors import UsageError
from p4q_edge.text_tower import TextTower, normalized_mean

Tokenizer = Callable[[list[str]], Tensor]

RANDOM_CONTEXT_STD = 0.02
SHARED_PREFIX_CLASSES = 4
"""With fewer classes than this the shared prefix saves nothing."""


def fill(template: str, class_name: str) -> str:
    """Put a class name into a template; ``{}`` marks its place.

    Raises:
        UsageError: the template has no ``{}``.
    """
    if "{}" not in template:
        raise UsageError(f"template {template!r} has no {{}} for the class name; write e.g. 'a photo of a {{}}.'")
    return template.replace("{}", class_name)


@torch.no_grad()
def template_embeddings(
    encode: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    class_prompts: Mapping[str, Sequence[str]] | None = None,
) -> Tensor:
    """Class embeddings of hand-written prompts, ``(classes, dim)`` normalized.

    Each class is the normalized mean of the normalized embeddings of its prompts.

    Args:
        encode: tokens ``(texts, context_length)`` to features ``(texts, dim)``.
        class_prompts: prompts of a class that replace the templates (as in CuPL).

    Source: CLIP, arXiv:2103.00020, section 3.1.4.
    """
    rows = []
    for name in class_names:
        prompts = list((class_prompts or {}).get(name, ())) or [fill(t, name) for t in templates]
        rows.append(normalized_mean(encode(tokenizer(prompts))))
    return torch.stack(rows)


class PromptLearner(nn.Module):
    """``[SOS][v_1 .. v_M][class name][.][EOT]`` with M learned context vectors shared by all classes.

    Attributes:
        context: ``(M, width)``, the only parameter.
        suffixes: embeddings of the class names, their stop and EOT, cut at the longest, ``(classes, S, width)``.
        end: pooled position within the whole prompt, ``(classes,)``.

    Source: CoOp, arXiv:2109.01134, eq. (2); P4Q, arXiv:2409.17634, section 3.2.
    """

    start: Tensor
    suffixes: Tensor
    end: Tensor

    def __init__(
        self,
        tower: TextTower,
        tokenizer: Any,
        class_names: Sequence[str],
        *,
        context: Tensor,
    ) -> None:
        super().__init__()
        self.__dict__["tower"] = tower  # not a submodule: its frozen weights are no part of what is learned
        self.context = nn.Parameter(context.clone())
        num_start = 1 if _has_start_token(tokenizer) else 0
        tokens = tokenizer([f"{name}." for name in class_names])  # (classes, context_length)
        moved = _with_room(tokens, num_start, len(context), class_names, tower)
        end = tower.end_index(moved)
        length = int(end.max()) + 1 if tower.causal else moved.shape[1]
        embedded = tower.embed(moved[:, :length])
        self.register_buffer("start", embedded[0, :num_start])
        self.register_buffer("suffixes", embedded[:, num_start + len(context) :])
        self.register_buffer("end", end)
        self.share_prefix = tower.shares_prefix and len(class_names) >= SHARED_PREFIX_CLASSES

    def forward(self) -> Tensor:
        """Class embeddings ``(classes, dim)``, normalized, with a gradient to the context."""
        tower: TextTower = self.__dict__["tower"]
        prefix = torch.cat([self.start, self.context])  # (P, width)
        if self.share_prefix:
            return F.normalize(tower.forward_shared(prefix, self.suffixes, self.end), dim=-1)
        return F.normalize(tower(self.prompts(), self.end), dim=-1)

    def prompts(self) -> Tensor:
        """Whole prompts as embeddings, ``(classes, L, width)``."""
        prefix = torch.cat([self.start, self.context])
        return torch.cat([prefix.expand(len(self.suffixes), -1, -1), self.suffixes], dim=1)


def initial_context(
    tower: TextTower, tokenizer: Any, *, words: str, num_tokens: int, generator: torch.Generator
) -> Tensor:
    """Context to start from, ``(M, width)``: the embeddings of `words`, or random vectors when `words` is empty.

    Raises:
        UsageError: the words have another number of tokens than `num_tokens` asks for.
    """
    if not words:
        return torch.randn(num_tokens, tower.width, generator=generator) * RANDOM_CONTEXT_STD
    num_start = 1 if _has_start_token(tokenizer) else 0
    tokens = tokenizer([words])
    empty = tokenizer([""])
    end_of_words = int((tokens != empty[0]).int().sum()) if not tower.causal else int(tower.end_index(tokens)[0])
    ids = tokens[:, num_start : max(end_of_words, num_start + 1)]
    if num_tokens not in (0, ids.shape[1]):
        raise UsageError(
            f"context_init {words!r} has {ids.shape[1]} tokens, num_context_tokens is {num_tokens}; "
            "make them equal, or leave context_init empty for a random start"
        )
    return tower.embed(ids)[0].detach()


def _has_start_token(tokenizer: Any) -> bool:
    first = tokenizer(["a", "b"])[:, 0]
    return bool(first[0] == first[1])


def _with_room(
    tokens: Tensor, num_start: int, num_context: int, class_names: Sequence[str], tower: TextTower
) -> Tensor:
    """Shift everything after the start token by `num_context` places; what falls off must be padding."""
    limit = tokens.shape[1]
    moved = torch.cat(
        [tokens[:, :num_start], torch.zeros(len(tokens), num_context, dtype=tokens.dtype), tokens[:, num_start:]], 1
    )
    lost = moved[:, limit:]
    padding = tokens[:, -1:]
    overflow = (lost != padding).any(1) | (tower.end_index(tokens) + num_context >= limit if tower.causal else False)
    if bool(overflow.any()):
        name = class_names[int(overflow.int().argmax())]
        raise UsageError(
            f"class name {name!r} with {num_context} context tokens needs more than {limit} tokens; "
            "shorten the name or lower learn.num_context_tokens"
        )
    return moved[:, :limit]
