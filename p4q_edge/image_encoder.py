"""The image side as one module: normalized pixels to features, with the final projection as a linear layer."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Image tower of an open_clip model: float32 ``(N, 3, H, W)`` normalized to features ``(N, dim)``.

    open_clip's ViT keeps its projection as a bare matrix; here it becomes a linear layer, so that the rule that
    quantizes linears finds it. The output is unchanged.
    """

    trunk: Any

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(visual)
        projection = getattr(visual, "proj", None)
        self.projection: nn.Module = nn.Identity()
        if isinstance(projection, Tensor):
            linear = nn.Linear(projection.shape[0], projection.shape[1], bias=False)
            linear.weight.data = projection.detach().T.contiguous().float()
            self.projection = linear
            self.trunk.proj = None
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.projection(self.trunk(pixels))
        return features


@torch.no_grad()
def find_cross_attention(model: nn.Module, sample: Tensor) -> frozenset[str]:
    """Paths of the attention modules that do not attend to their own query, found by watching one forward pass."""
    attentions = {name: m for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    own_query: dict[str, bool] = dict.fromkeys(attentions, False)

    def watch(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        query, key, value = (
            args[i] if len(args) > i else kwargs.get(word) for i, word in enumerate(("query", "key", "value"))
        )
        own_query[name] = query is key and query is value

    handles = [
        module.register_forward_pre_hook(lambda m, args, kwargs, name=name: watch(name, args, kwargs), with_kwargs=True)
        for name, module in attentions.items()
    ]
    try:
        model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(name for name, own in own_query.items() if not own)


@torch.no_grad()
def encode_batches(encoder: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Features of all batches, ``(images, dim)`` float32."""
    return torch.cat([encoder(batch) for batch in batches])


def round_float_weights(encoder: nn.Module) -> None:
    """Round convolution weights to FP16 values, in place.

    Both exported graphs store these weights as FP16; rounding them here keeps the PyTorch reference, the FP16 graph
    and the FP32 graph on the same numbers.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.detach().half().float()
