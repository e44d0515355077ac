"""The image side as one module: normalized pixels to features, with the final projection as a linear layer."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from p4q_edge.quant import attentions

_ATTENDING = frozenset({F.scaled_dot_product_attention, F.softmax, torch.softmax, Tensor.softmax})


class ImageEncoder(nn.Module):
    """Image tower of an open_clip model: float32 `(N, 3, H, W)` normalized to features `(N, dim)`.

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
            linear.weight = nn.Parameter(projection.detach().T.contiguous().float())
            self.projection = linear
            self.trunk.proj = None
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.projection(pooled(self.trunk(pixels)))
        return features


def pooled(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return what an image tower pools, `(N, dim)`; towers of captioning models (CoCa) give their tokens behind it."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def find_cross_attention(model: nn.Module, sample: Tensor) -> frozenset[str]:
    """Return paths of the attention modules that do not attend to their own query, found by watching one pass."""
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


class _AttendingModules(TorchFunctionMode):
    """Collects the innermost module whose forward calls a softmax or a whole attention.

    Attributes:
        running: paths of the modules whose forward runs now, outermost first.
        found: paths of those that attended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ATTENDING and self.running:
            self.found.add(self.running[-1])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def find_attention_owners(model: nn.Module, sample: Tensor) -> frozenset[str]:
    """Return paths of the modules that attend in their own forward, found by watching one pass.

    Their linears are those of an attention, whatever the architecture calls its classes.
    """
    watch = _AttendingModules()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, args, name=name: watch.running.append(name)))
        handles.append(module.register_forward_hook(lambda m, args, output: watch.running.pop() and None))
    try:
        with watch:
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(watch.found)


def tokens_read(model: nn.Module, sample: Tensor) -> dict[str, tuple[int, int]]:
    """Of each attention that was swapped in: its number of tokens, and how many rows of its result are read.

    A row that cannot change the output has a gradient of exactly zero: behind the last attention of a model that
    pools its class token, only that token's row is read.
    """
    results: dict[str, Tensor] = {}
    handles = [
        attention.out_proj.register_forward_hook(lambda m, args, output, name=name: results.update({name: output}))
        for name, attention in attentions(model).items()
    ]
    try:
        if not handles:
            return {}
        with torch.enable_grad():
            output = model(sample.clone().requires_grad_())
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device)
            gradients = torch.autograd.grad((output * weights).sum(), list(results.values()))
    finally:
        for handle in handles:
            handle.remove()
    rows = [int((gradient != 0).any(dim=-1).any(dim=0).sum()) for gradient in gradients]
    return {name: (result.shape[1], read) for (name, result), read in zip(results.items(), rows, strict=True)}


def round_float_weights(encoder: nn.Module) -> None:
    """Round convolution weights to FP16 values, in place.

    Both exported graphs store these weights as FP16; rounding them here keeps the PyTorch reference, the FP16 graph
    and the FP32 graph on the same numbers.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.detach().half().float()
