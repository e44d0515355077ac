"""Stage `fold`: learned prompts become a constant matrix, and image encoder, adapter and head become one module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models.adapter import Adapter
from p4q_edge.models.batches import PixelSource
from p4q_edge.quant import Phase, running_as_cpu_graph, running_in
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.progress import tracked


class FoldedClassifier(nn.Module):
    """Pixels to logits, embedding and features, with everything about the text folded to constants.

    Attributes:
        encoder: image tower, quantized.
        adapter: quantized, or None.
        text_embedding: `(classes, dim)` float32, normalized.
        logit_scale: exponentiated scale, `()`.
        logit_bias: `()`; 0 where the model has none.
        mean: of the pixels, `(1, 3, 1, 1)`, in units of 0 to 255.
        inverse_std: likewise.
    """

    text_embedding: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    mean: Tensor
    inverse_std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        adapter: Adapter | None,
        text_embedding: Tensor,
        *,
        logit_scale: float,
        logit_bias: float | None,
        preprocess: PreprocessSpec,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.register_buffer("text_embedding", F.normalize(text_embedding.detach(), dim=-1))
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.register_buffer("logit_bias", torch.tensor(logit_bias or 0.0))
        self.register_buffer("mean", (torch.tensor(preprocess.mean) * 255.0).view(1, 3, 1, 1))
        self.register_buffer("inverse_std", (1.0 / (torch.tensor(preprocess.std) * 255.0)).view(1, 3, 1, 1))
        self.to(text_embedding.device)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn uint8 `(N, 3, H, W)` into logits `(N, classes)`, embedding `(N, dim)` and features `(N, dim)`."""
        features: Tensor = self.encoder((image.float() - self.mean) * self.inverse_std)
        adapted = features if self.adapter is None else self.adapter(features)
        embedding = adapted / torch.linalg.vector_norm(adapted, dim=-1, keepdim=True)
        logits = (embedding @ self.text_embedding.T) * self.logit_scale + self.logit_bias
        return logits, embedding, features


@torch.no_grad()
def run_folded(
    model: FoldedClassifier, images: PixelSource, *, phase: Phase, as_cpu_graph: bool = False, batch_size: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, embedding and features of many images, fake-quantized or in float (the same folded weights).

    Args:
        images: uint8 `(N, 3, H, W)`, on any device.
        as_cpu_graph: with `Phase.QUANTIZED`, quantize as the graph for CPUs does.

    Returns:
        On the CPU, whatever device the model is on.
    """
    device = model.text_embedding.device
    cpu = as_cpu_graph and phase is Phase.QUANTIZED
    with running_as_cpu_graph(model) if cpu else running_in(model, phase):
        chunks = tracked(images.split(batch_size), "run PyTorch", total=-(-len(images) // batch_size))
        parts = [tuple(x.cpu() for x in model(chunk.to(device))) for chunk in chunks]
    logits, embedding, features = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, embedding, features
