"""The manifest of a bundle: what it holds, what made it, and how near its graphs are to the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET

from p4q_edge.runtime.artifacts.precision import Precision
from p4q_edge.runtime.artifacts.recipe_document import RecipeDocument
from p4q_edge.runtime.choices import CpuProfile, GraphKind, Remainder
from p4q_edge.runtime.statistics import FULL_BITS, NoiseFloor, require_loss, with_remainder

GraphRun: TypeAlias = Literal["fp32", "fp32_unoptimized", "fp16", "placed"]
"""A graph as it was run to compare it; `placed` is `fp16` before its remainder turned into FP16."""
NoiseKind: TypeAlias = Literal["fp32", "fp16", "seven_bit", "float", "bf16", "convolutions", "seven_bit_convolutions"]
"""What a module differs by from itself: as a graph may, with weights of 7 bits, with no activation on a grid, and with
bfloat16 for what is not quantized; with quantized convolutions as the graph for GPUs may in FP32, and with weights of 7
bits where these have signed inputs."""
NOISE_OF_PROFILE: Mapping[CpuProfile, NoiseKind] = {
    "exact": "fp32",
    "fast": "seven_bit",
    "float": "float",
    "convolutions": "convolutions",
    "fast-convolutions": "seven_bit_convolutions",
}
"""What the weights of a CPU engine may differ by."""


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and SHA-256 digest of one member of a bundle."""

    size_bytes: int
    sha256: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The CLIP model that a bundle was made from.

    Attributes:
        name: open_clip's name, e.g. `ViT-B-32`.
        pretrained: the tag or file name of its weights.
        family: kind of image tower, e.g. `vit`.
        license: licence of the weights as stated by their source.
        weights_sha256: digest of the checkpoint.
    """

    name: str
    pretrained: str
    family: str
    license: str
    weights_sha256: str


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How near one run of a graph came to the module: the least cosine of each output, and the share of equal answers.

    None where a number is not finite.
    """

    cosine_features: float | None = None
    cosine_embedding: float | None = None
    cosine_logits: float | None = None
    top1_agreement: float | None = None


class GraphParity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near the exported graphs came to the fake-quantized module.

    Attributes:
        agreement: of each run.
        noise: what the module differs by from itself on `noise_images` images.
        median_loss: upper end of the interval of the median of 1 - cosine of the embeddings of `loss_images` images.
    """

    agreement: dict[GraphRun, Agreement] = {}
    noise: dict[NoiseKind, NoiseFloor] = {}
    median_loss: dict[GraphKind, float] = {}
    noise_images: int = 0
    loss_images: int = 0

    def __post_init__(self) -> None:
        for kind, loss in self.median_loss.items():
            require_loss(f"median_loss of {kind}", loss)
        if min(self.noise_images, self.loss_images) < 0:
            raise ValueError(f"expected numbers of images, got {self.noise_images} and {self.loss_images}")

    @property
    def least_cosine(self) -> float:
        """The least cosine of any output in any run; NaN where none was measured."""
        rows = [msgspec.structs.asdict(row) for row in self.agreement.values()]
        found = [value for row in rows for name, value in row.items() if name.startswith("cosine_")]
        return min((value for value in found if value is not None), default=math.nan)

    def noise_of(self, profile: CpuProfile, *, remainder: Remainder) -> NoiseFloor | None:
        """Return what a CPU engine may differ by from the module; None where that was not measured."""
        return with_remainder(self.noise.get(NOISE_OF_PROFILE[profile]), self.of_remainder(remainder))

    def of_remainder(self, remainder: Remainder) -> NoiseFloor | None:
        """Return what computing the remainder otherwise than in 32 bits may add; None for those."""
        return self.noise.get("bf16") if remainder == "bf16" else None

    def flat(self) -> dict[str, float]:
        """Return it keyed `GRAPH.MEASURE`, as documents have it."""
        rows: dict[str, float | None] = {}
        for run, agreement in self.agreement.items():
            rows |= {f"{run}.{name}": value for name, value in msgspec.structs.asdict(agreement).items()}
        for kind, floor in self.noise.items():
            rows |= {f"{kind}.noise_{name}": value for name, value in msgspec.structs.asdict(floor).items()}
        rows |= {f"{kind}.median_loss": value for kind, value in self.median_loss.items()}
        images = {"noise_images": float(self.noise_images), "loss_images": float(self.loss_images)}
        return {name: value for name, value in rows.items() if value is not None} | {
            name: value for name, value in images.items() if value
        }


def agreement_of(measures: Mapping[str, float]) -> Agreement:
    """Return what `measures` says by name, without numbers that are not finite: JSON knows none."""
    return Agreement(**{name: value for name, value in measures.items() if math.isfinite(value)})


class LearnedImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image that the model was learned from; `label` is an index into the class names."""

    name: str
    label: int
    sha256: str


class CrossValidated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of `n` photographs were named rightly by heads that were not learned from them.

    Attributes:
        n: labelled photographs.
        folds: parts of them.
        zero_shot: right answers of the full-precision model with hand-written prompts, which learns nothing.
        learned_float: of learned heads on the features of the full-precision image tower.
        learned_quantized: of learned heads on the features of the quantized one.
    """

    n: int
    folds: int
    zero_shot: int
    learned_float: int
    learned_quantized: int

    def __post_init__(self) -> None:
        counts = (self.zero_shot, self.learned_float, self.learned_quantized)
        if self.n < 1 or not all(0 <= count <= self.n for count in counts):
            raise ValueError(f"expected counts of right answers from 0 to n, got {counts} of {self.n}")


class CalibratedOn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a model that no labelled image was seen with: how near it stays to full precision.

    Attributes:
        source: name of what the images came from.
        images: that ranges were measured on.
        held_out: further ones, on which the rest was measured; 0 where there were too few.
        same_answer: how many of these the quantized model names as that of full precision does.
        cosine_mean, cosine_min: of the embeddings of both; null without images held out.
    """

    source: str
    images: int
    held_out: int = 0
    same_answer: int = 0
    cosine_mean: float | None = None
    cosine_min: float | None = None

    def __post_init__(self) -> None:
        if self.images < 1 or not 0 <= self.same_answer <= self.held_out:
            raise ValueError(
                f"expected an image and from 0 to {self.held_out} equal answers, got {self.images} and "
                f"{self.same_answer}"
            )


class DataIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The images that a bundle was made with.

    Attributes:
        learned: those that were learned from, in label order.
        test_images: how many were left to test on.
        found_names: what the data calls the classes, in label order, where the recipe gave other names for them.
        prompts: the first hand-written prompt of each class.
        zero_shot: answers of the full-precision model and the hand-written prompts alone to the recorded images.
        float_bytes: size of the image tower in full precision.
        cross_validated: accuracy on the images learned from, where there are no others.
        calibrated_on: where nothing was learned, what is known without labels.
    """

    learned: tuple[LearnedImage, ...] = ()
    test_images: int | None = None
    found_names: tuple[str, ...] = ()
    prompts: dict[str, str] = {}
    zero_shot: tuple[int, ...] = ()
    float_bytes: int | None = None
    cross_validated: CrossValidated | None = None
    calibrated_on: CalibratedOn | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle holds and what made it.

    Attributes:
        members: size and digest of every other member.
        narrowest_bits: of the narrowest quantized input in the graphs; None in bundles that do not tell.
        parity: how near the exported graphs came to the fake-quantized model.
        recipe: what it was made with.
        data_index: the images.
        unsound: why a graph does not compute what the module computes: no engine is built from it.
    """

    schema_version: int = 2
    created_by: str
    model: ModelInfo
    precision: Precision
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    embedding_dim: int
    members: dict[str, Member] = {}
    versions: dict[str, str] = {}
    seed: int = 0
    recipe: RecipeDocument = RecipeDocument()
    data_index: DataIndex = DataIndex()
    parity: GraphParity = GraphParity()
    narrowest_bits: int | None = None
    unsound: dict[GraphKind, str] = {}

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or min(self.image_size) < 1 or self.rounding_bits < 1:
            raise ValueError(
                "embedding_dim, image_size and narrowest_bits must be positive, got "
                f"{self.embedding_dim}, {self.image_size} and {self.narrowest_bits}"
            )
        # What rounding may do grows with each bit less: a bundle cannot have it both ways.
        stated = min(self.precision.activation_bits, self.precision.attention_bits or FULL_BITS, self._adapter_bits)
        if self.rounding_bits < stated:
            raise ValueError(
                f"narrowest_bits: expected at least the {stated} bits of the precision, got {self.narrowest_bits}"
            )

    @property
    def _adapter_bits(self) -> int:
        """Of the adapter's inputs, whose grid the recipe alone names; 8 at most, as without one."""
        quantization = self.recipe.quantization
        bits = UNSET if quantization is UNSET else quantization.adapter_bits
        return FULL_BITS if bits is UNSET else min(bits, FULL_BITS)

    def problem(self, kind: GraphKind) -> str | None:
        """Return why a graph does not compute what the module computes; None where it does."""
        return self.unsound.get(kind)

    @property
    def rounding_bits(self) -> int:
        """Bits of the narrowest quantized input, which decide what rounding may do where no noise was measured."""
        return self.precision.activation_bits if self.narrowest_bits is None else self.narrowest_bits
