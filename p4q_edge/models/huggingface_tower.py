"""Text towers of Hugging Face that open_clip carries: BERT, RoBERTa, XLM-RoBERTa, mT5 and M2M-100."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from p4q_edge.models.text_side import TextSide
from p4q_edge.quant import QuantScheme, quantize_modules
from p4q_edge.runtime.errors import UsageError

PARTS = ("transformer", "pooler", "proj", "config")
"""What open_clip's adapter of such a tower is made of."""

POOLERS = {
    "MeanPooler": "mean_pooler",
    "ClsPooler": "cls_pooler",
    "ClsLastHiddenStatePooler": "cls_last_hidden_state_pooler",
}
"""By open_clip's classes; its maximum masks words in place of padding, and fails."""


def is_huggingface(source: object) -> bool:
    """Return whether a text module is open_clip's adapter of a Hugging Face encoder."""
    return all(hasattr(source, part) for part in PARTS)


class HuggingFaceTower(TextSide):
    """Text tower of Hugging Face in an open_clip model, frozen.

    Tokens attend in both directions, and padding is masked: a text may be cut at its last token without a difference.
    Pooling (mean, or class token with or without BERT's own pooler) is that of the model.

    Raises:
        UsageError: a pooling that open_clip cannot compute, or a configuration without padding.
    """

    def __init__(self, clip: Any, scheme: QuantScheme) -> None:
        super().__init__()
        source = clip.text
        if source.config.pad_token_id is None:
            raise UsageError(
                f"prompts need a text tower that knows its padding; the config.json of {source.config.model_type} has "
                "no pad_token_id; add it, or set learn.prompts = false"
            )
        kind = type(source.pooler).__name__
        if kind not in POOLERS:
            raise UsageError(
                f"expected a text tower that pools by {', '.join(list(POOLERS.values())[:-1])} or "
                f"{list(POOLERS.values())[-1]}, got {'max_pooler' if kind == 'MaxPooler' else kind}; "
                "set hf_pooler_type in open_clip_config.json to what the model was trained with"
            )
        self.padding = int(source.config.pad_token_id)
        self.transformer: Any = copy.deepcopy(source.transformer)
        self.projection: nn.Module = copy.deepcopy(source.proj)
        self.pooler = source.pooler
        self._longest = int(source.context_length)
        quantize_modules(self, scheme, cross_attention=frozenset())
        self.eval().requires_grad_(False)

    @property
    def causal(self) -> bool:
        return False

    @property
    def cuts_at_end(self) -> bool:
        return True

    @property
    def width(self) -> int:
        return int(self.transformer.get_input_embeddings().weight.shape[1])

    @property
    def context_length(self) -> int:
        return self._longest

    def end_index(self, tokens: Tensor) -> Tensor:
        """Position of the last token of each text before its padding, `(texts,)` int64.

        Raises:
            UsageError: padding lies in front of a text.
        """
        real = tokens != self.padding
        end = real.sum(dim=1) - 1
        if bool((real != (torch.arange(tokens.shape[1], device=end.device) <= end[:, None])).any()):
            raise UsageError(
                f"expected padding (token {self.padding}) behind the texts only, found it inside or in front of one; "
                'set "padding_side": "right" in tokenizer_config.json, or learn.prompts = false'
            )
        return end

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        mask = (torch.arange(embeddings.shape[1], device=end.device) <= end[:, None]).long()  # (texts, L)
        output = self.transformer(inputs_embeds=embeddings, attention_mask=mask)
        projected: Tensor = self.projection(self.pooler(output, mask))
        return projected

    def embed(self, tokens: Tensor) -> Tensor:
        words = self.transformer.get_input_embeddings()
        embedded: Tensor = words(tokens.to(words.weight.device))
        return embedded
