"""The recipe as bundles and documents tell it: which choices a run was made with.

The toolkit decides what a recipe may say, and computes from it; the runtime only shows it. So words are texts here and
not the choices of one version, what a version does not know is passed over, and what it did not have is left out: no
bundle is refused for keys or words of another version. A key keeps its type; one of another type is refused.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class ModelChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[model] of a recipe: which CLIP. Local files are named without their folders."""

    name: str | UnsetType = UNSET
    pretrained: str | UnsetType = UNSET
    quick_gelu: bool | UnsetType | None = UNSET
    image_size: int | UnsetType | None = UNSET
    mean: tuple[float, float, float] | UnsetType | None = UNSET
    std: tuple[float, float, float] | UnsetType | None = UNSET
    interpolation: str | UnsetType | None = UNSET
    resize_mode: str | UnsetType | None = UNSET
    license: str | UnsetType = UNSET


class DataChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[data] of a recipe: images, and the words for their classes. Local files are named without their folders."""

    train: str | UnsetType = UNSET
    calibration: str | UnsetType = UNSET
    test: str | UnsetType = UNSET
    unlabelled: str | UnsetType = UNSET
    class_names: tuple[str, ...] | str | UnsetType = UNSET
    templates: tuple[str, ...] | str | UnsetType = UNSET
    class_prompts: str | UnsetType = UNSET
    shots: int | UnsetType = UNSET
    test_limit: int | UnsetType = UNSET
    orient: bool | UnsetType = UNSET


class QuantizationChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[quantization] of a recipe: how values are put on a grid, and which layers keep theirs."""

    weight_bits: int | UnsetType = UNSET
    activation_bits: int | UnsetType = UNSET
    weight_block: int | UnsetType | None = UNSET
    number_format: str | UnsetType = UNSET
    attention_bits: int | UnsetType | None = UNSET
    mean_weight_bits: float | UnsetType | None = UNSET
    quantize_attention: bool | UnsetType = UNSET
    adapter_bits: int | UnsetType = UNSET
    observer: str | UnsetType = UNSET
    percentile: float | UnsetType = UNSET
    weight_observer: str | UnsetType = UNSET
    activation_gain: bool | UnsetType = UNSET
    fold_norm: bool | UnsetType = UNSET
    fold_value: bool | UnsetType = UNSET
    rotation: bool | UnsetType | None = UNSET
    fold_strength: float | UnsetType = UNSET
    headroom: float | UnsetType = UNSET
    bias_correction: bool | UnsetType = UNSET
    weight_rounding: str | UnsetType = UNSET
    affine_correction: bool | UnsetType = UNSET
    scale_epochs: int | UnsetType = UNSET
    reconstruction_epochs: int | UnsetType = UNSET
    convolutions: str | UnsetType = UNSET
    depthwise: bool | UnsetType = UNSET
    stem: bool | UnsetType = UNSET
    keep_float: tuple[str, ...] | UnsetType = UNSET
    max_cosine_loss: float | UnsetType | None = UNSET
    max_top1_drop: float | UnsetType | None = UNSET
    text: bool | UnsetType = UNSET
    calibration_images: int | UnsetType = UNSET


class LearnChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[learn] of a recipe: prompts, adapter, losses and schedule."""

    prompts: bool | UnsetType = UNSET
    adapter: bool | UnsetType = UNSET
    class_residual: bool | UnsetType = UNSET
    teacher: str | UnsetType | None = UNSET
    distillation: float | UnsetType | None = UNSET
    kl_temperature: float | UnsetType = UNSET
    context_init: str | UnsetType = UNSET
    num_context_tokens: int | UnsetType = UNSET
    residual_ratio: float | UnsetType = UNSET
    learn_ratio: bool | UnsetType = UNSET
    zero_init: bool | UnsetType = UNSET
    prompt_pull: float | UnsetType = UNSET
    feature_loss: float | UnsetType = UNSET
    label_smoothing: float | UnsetType = UNSET
    epochs: int | UnsetType = UNSET
    steps: int | UnsetType = UNSET
    batch_size: int | UnsetType = UNSET
    anchor_prompts: bool | UnsetType = UNSET
    prompt_steps: int | UnsetType = UNSET
    prompt_rate: float | UnsetType = UNSET
    context_rate: float | UnsetType = UNSET
    adapter_rate: float | UnsetType = UNSET
    class_rate: float | UnsetType = UNSET
    weight_decay: float | UnsetType = UNSET
    views: int | UnsetType = UNSET
    flip: bool | UnsetType = UNSET
    text_memory_mib: int | UnsetType = UNSET


class ExportChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[export] of a recipe: what travels beside the graphs."""

    golden_samples: int | UnsetType = UNSET
    reference_images: int | UnsetType = UNSET


class ComputeChoices(msgspec.Struct, frozen=True, kw_only=True):
    """[compute] of a recipe; in a bundle all but the precision is at its default, since it changes no result."""

    device: str | UnsetType = UNSET
    workers: int | str | UnsetType = UNSET
    batch_size: int | str | UnsetType = UNSET
    memory_gib: float | UnsetType = UNSET
    precision: str | UnsetType = UNSET


class RecipeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved recipe by section; keys that its version did not know are left out."""

    schema_version: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    method: str | UnsetType = UNSET
    model: ModelChoices | UnsetType = UNSET
    data: DataChoices | UnsetType = UNSET
    quantization: QuantizationChoices | UnsetType = UNSET
    learn: LearnChoices | UnsetType = UNSET
    export: ExportChoices | UnsetType = UNSET
    compute: ComputeChoices | UnsetType = UNSET
