"""The published code of P4Q as a baseline: what it computes, defects included. Only measured, never built.

Written from a description of its behaviour, with none of its code. A recipe with `method = "as-released"` runs it
(`p4q-edge learn --ablate methods`). Its defects, each with a test of what follows from it:

1. The context is random and never learned; what is learned is an adapter against the class embeddings it gives.
2. Rounding has no straight-through gradient: none passes a quantized layer.
3. The distillation loss has its arguments swapped and a softmax too many: it is least for a one-hot answer.
4. Ranges need not include 0 while the zero point is clamped: a channel that stays in [5, 6] is destroyed.
5. One shrink factor is searched for all channels of a layer, on the last calibration batch alone.
6. "4-4-8" narrows the patch convolution and nothing else (`patch_bits`); the blocks stay at 8 bits.
7. The adapter is learned in float and quantized afterwards.

Widths are applied to the same linears as in our own method, which is what the published figures claim. Scale and
rounding are its own here, and not those of `p4q_edge.quant.affine`, as they are what is wrong with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.learning import CachedFeatures, Student, contrastive_loss
from p4q_edge.models import (
    Adapter,
    ImageEncoder,
    LoadedModel,
    PromptLearner,
    encode_batches,
    find_cross_attention,
    initial_context,
    make_text_side,
    to_batch,
)
from p4q_edge.quant import Phase, quant_linears, quantize_modules, replace_module, set_phase
from p4q_edge.recipe import LearnSection, QuantizationSection, Recipe
from p4q_edge.stages import Source, hand_written_embeddings

BATCH_SIZE = 64
SHRINKS = 90
"""Number of shares of the range that the search tries: 1.00, 0.99, ..."""


@dataclass(frozen=True, kw_only=True)
class ClampedGrid:
    """Unsigned asymmetric grid of each channel, its zero point clamped into the integer range.

    Attributes:
        scale, zero_point: float32, broadcastable to what is quantized.
        quant_max: largest integer; the smallest is 0.
    """

    scale: Tensor
    zero_point: Tensor
    quant_max: int

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, bits: int) -> "ClampedGrid":
        """Return the grid of observed ranges, which need not include 0."""
        quant_max = 2**bits - 1
        scale = ((high - low) / quant_max).clamp(min=torch.finfo(torch.float32).eps)
        zero_point = torch.round(-low / scale).clamp(0, quant_max)
        return cls(scale=scale, zero_point=zero_point, quant_max=quant_max)

    def apply(self, x: Tensor) -> Tensor:
        """`x` on the grid, as real values; the gradient is 0 everywhere."""
        q = torch.clamp(torch.round(x / self.scale + self.zero_point), 0, self.quant_max)
        return (q - self.zero_point) * self.scale


def search_grid(last_batch: Tensor, low: Tensor, high: Tensor, bits: int) -> ClampedGrid:
    """Shrink the ranges of all channels by the one factor with the least squared error on the last batch."""
    best, least = ClampedGrid.from_range(low, high, bits), torch.inf
    for step in range(SHRINKS):
        share = 1.0 - step / 100
        grid = ClampedGrid.from_range(low * share, high * share, bits)
        error = float((grid.apply(last_batch) - last_batch).square().sum())
        if error < least:
            best, least = grid, error
    return best


class ReleasedLayer(nn.Module):
    """A linear or convolution that observes its inputs until `fix`, and runs quantized from then on.

    Attributes:
        channels: dimension of the input's channels.
        grid: of the input; None while it is observed.
    """

    def __init__(self, layer: Callable[[Tensor, Tensor, Tensor | None], Tensor], *, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels = channels
        self.grid: ClampedGrid | None = None
        self.low = self.high = self.last = torch.empty(0)

    def take(self, weight: Tensor, bias: Tensor | None) -> "ReleasedLayer":
        """Take over weight `(out, in, ...)` and bias."""
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is not None:
            return self.layer(self.grid.apply(x), self.weight, self.bias)
        others = [d for d in range(x.ndim) if d != self.channels % x.ndim]
        low, high = x.amin(others, keepdim=True), x.amax(others, keepdim=True)
        first = self.low.numel() == 0
        self.low, self.high = (low, high) if first else (torch.minimum(self.low, low), torch.maximum(self.high, high))
        self.last = x
        return self.layer(x, self.weight, self.bias)

    def fix(self, weight_bits: int, activation_bits: int) -> None:
        """End observing: quantize the weight of each output channel, and choose the grid of the input."""
        rows = [d for d in range(self.weight.ndim) if d]
        low, high = self.weight.amin(rows, keepdim=True), self.weight.amax(rows, keepdim=True)
        self.weight.data = ClampedGrid.from_range(low, high, weight_bits).apply(self.weight)
        self.grid = search_grid(self.last, self.low, self.high, activation_bits)
        self.low = self.high = self.last = torch.empty(0)


def release_linears(model: nn.Module) -> list[ReleasedLayer]:
    """Put observing layers in the place of all quantizable linears."""
    layers = []
    for path, linear in quant_linears(model).items():
        layers.append(ReleasedLayer(F.linear, channels=-1).take(linear.weight, linear.bias))
        replace_module(model, path, layers[-1])
    return layers


def release_convolutions(model: nn.Module) -> list[ReleasedLayer]:
    """Put observing layers in the place of all convolutions (of a ViT, the patch embedding)."""
    layers = []
    for path, conv in [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d)]:
        run = partial(F.conv2d, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
        layers.append(ReleasedLayer(run, channels=1).take(conv.weight, conv.bias))
        replace_module(model, path, layers[-1])
    return layers


@torch.no_grad()
def quantize_encoder(
    model: LoadedModel, images: Tensor, section: QuantizationSection, *, patch_bits: int = 0
) -> nn.Module:
    """Return the image tower as the published code quantizes it.

    Args:
        images: uint8 `(N, 3, H, W)`, the labelled training images.
        patch_bits: weight and input bits of the patch convolution; 0 leaves it in float. 4, with a section of 8
            bits, is what the published code runs as "4-4-8".
    """
    device = model.compute.device
    batches = [to_batch(chunk.to(device), model.preprocess) for chunk in torch.split(images, BATCH_SIZE)]
    encoder = ImageEncoder(model.clip.visual)  # type: ignore[arg-type]
    quantize_modules(encoder, section.scheme(), cross_attention=find_cross_attention(encoder, batches[0][:1]))
    linears = release_linears(encoder)
    patches = release_convolutions(encoder) if patch_bits else []
    encode_batches(encoder, batches)
    for layer in linears:
        if layer.last.numel():
            layer.fix(section.weight_bits, section.activation_bits)
    for layer in patches:
        layer.fix(patch_bits, patch_bits)
    return encoder


def learn_as_released(source: Source, features: CachedFeatures) -> Student:
    """Return what the published code learns on `quantize_encoder`'s features: an adapter to random class rows."""
    scale, recipe = source.model.logit_scale, source.recipe
    text = random_text_embedding(
        source.model, source.class_names, recipe
    ).cpu()  # the adapter is learned there: it is small
    adapter = learn_adapter(features, text, hand_written_embeddings(source).cpu(), recipe=recipe, logit_scale=scale)
    return Student(prompts=None, adapter=adapter, hand_written=text, logit_scale=scale)


def random_text_embedding(model: LoadedModel, class_names: tuple[str, ...], recipe: Recipe) -> Tensor:
    """Return class embeddings `(classes, dim)` normalized, by the random context that is never learned.

    With the recipe's `quantization.text` they come from a text tower that is quantized in the same way.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    section = recipe.quantization
    tower = make_text_side(model.clip, section.scheme())
    words = {"words": recipe.learn.context_init, "num_tokens": recipe.learn.num_context_tokens}
    context = initial_context(tower, model.tokenizer, **words, generator=generator)  # type: ignore[arg-type]
    prompts = PromptLearner(tower, model.tokenizer, class_names, context=context)
    with torch.no_grad():
        if section.text:
            prompts.share_prefix = False
            layers = release_linears(tower)
            prompts()
            for layer in layers:
                layer.fix(section.weight_bits, section.activation_bits)
        embedding: Tensor = prompts()
    return embedding


def swapped_distillation(*, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's probabilities as logits and the student's as target, `()`.

    It is linear in the student's probabilities, so that its minimum is one-hot on the teacher's best class.
    """
    costs = -F.log_softmax(teacher_logits.softmax(-1), dim=-1)
    return (student_logits.softmax(-1) * costs).sum(-1).mean()


def learn_adapter(
    features: CachedFeatures, text: Tensor, teacher_text: Tensor, *, recipe: Recipe, logit_scale: float
) -> Adapter:
    """Learn the adapter in float on quantized features, then quantize it.

    Args:
        text: class embeddings `(classes, dim)` of the student.
        teacher_text: of the teacher.
    """
    section, epochs = recipe.learn, recipe.learn.passes(len(features.labels))
    inputs, teacher = features.student[0], F.normalize(features.teacher[0], dim=-1)
    targets = teacher @ teacher_text.T * logit_scale
    generator = torch.Generator().manual_seed(recipe.seed)
    adapter = Adapter(
        inputs.shape[1],
        recipe.quantization.adapter_scheme(),
        ratio=section.residual_ratio,
        learn_ratio=False,
        zero_init=section.zero_init,
        generator=generator,
    )
    set_phase(adapter, Phase.FLOAT)
    learned = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=section.adapter_rate, weight_decay=section.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(inputs), generator=generator), section.batch_size):
            logits = logit_scale * F.normalize(adapter(inputs[chosen]), dim=-1) @ text.T
            loss = contrastive_loss(logits=logits, labels=features.labels[chosen])
            loss = loss + section.teacher_weight * swapped_distillation(
                student_logits=logits, teacher_logits=targets[chosen]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return quantize_adapter(adapter, inputs, recipe.quantization.adapter_bits, section)


@torch.no_grad()
def quantize_adapter(adapter: Adapter, inputs: Tensor, bits: int, section: LearnSection) -> Adapter:
    """Quantize a learned adapter, its grids from the features `(N, dim)` it was learned on."""
    layers = release_linears(adapter)
    for chunk in torch.split(inputs, section.batch_size):
        adapter(chunk)
    for layer in layers:
        layer.fix(bits, bits)
    return adapter
