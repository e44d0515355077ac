"""Methods and levers side by side, over seeds, on features that are computed once for each seed and quantization.

Two scores: `cross_validated` calibrates and learns on three quarters of the labelled images and scores the rest, so
that levers are chosen without a look at the test images; `tested` does both on all of them and scores the test images.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.baselines import as_released
from p4q_edge.calibration import calibrate_encoder
from p4q_edge.data import folds, pixels, read_split, read_unlabelled
from p4q_edge.evaluation.variants import Variant
from p4q_edge.learning import CachedFeatures, Student, Unlabelled
from p4q_edge.recipe import LearnSection, QuantizationSection, Recipe
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import StageCode
from p4q_edge.stages import (
    Source,
    augmented_views,
    image_features,
    learn_student,
    open_source,
    teacher_features,
)

logger = logging.getLogger(__name__)

Scored = Literal["tested", "cross_validated"]

ABLATE = StageCode(
    modules=("p4q_edge.evaluation.ablation", "p4q_edge.evaluation.variants"),
    rooms=("p4q_edge.stages", "p4q_edge.baselines"),
)


@dataclass(frozen=True, kw_only=True)
class SeedData:
    """Everything of one seed that no variant changes.

    Attributes:
        views: uint8 views of the labelled images by `flip`, `(views, images, 3, H, W)`.
        teacher: their features by the float encoder, `(views, images, dim)`.
        unlabelled_teacher: features of the images without labels by the float encoder, `(images, dim)`, or None.
        test_images: uint8 `(images, 3, H, W)`; none where folds are scored.
        test_labels: `(images,)`.
    """

    source: Source
    views: dict[bool, Tensor]
    teacher: dict[bool, Tensor]
    unlabelled_teacher: Tensor | None
    test_images: Tensor
    test_labels: Tensor

    @property
    def labels(self) -> Tensor:
        """Of the labelled images, `(images,)`."""
        return torch.from_numpy(self.source.split.train.labels)


@dataclass(frozen=True, kw_only=True)
class LearnedPart:
    """Indices that are learned from, and the images that are scored.

    Attributes:
        train: `(images,)` int64, indices of labelled images.
        images, labels: uint8 `(scored, 3, H, W)` and `(scored,)`.
    """

    train: Tensor
    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class PartFeatures:
    """Features of one part by one encoder.

    Attributes:
        learned: by `flip`.
        scored: `(scored, dim)`.
        labels: `(scored,)`.
    """

    learned: dict[bool, CachedFeatures]
    scored: Tensor
    labels: Tensor


def open_seed(recipe: Recipe, variants: Sequence[Variant], *, tested: bool) -> SeedData:
    """Open a recipe's data under its seed, and make all views that a variant learns from."""
    source = open_source(recipe)
    images = pixels(source.split.train, source.model.preprocess)
    wanted: dict[bool, int] = {}
    for variant in variants:
        section = learn_section(recipe, variant)
        wanted[section.flip] = max(section.views, wanted.get(section.flip, 1))
    views = {
        flip: torch.stack([*augmented_views(images, count, flip=flip, seed=recipe.seed)])
        for flip, count in wanted.items()
    }
    teacher = {
        flip: torch.stack([teacher_features(source.model, view) for view in some]) for flip, some in views.items()
    }
    if tested and not len(source.split.test):
        raise UsageError(
            "methods are compared on test images, and all images are learned from; name some with data.test, or set "
            "data.shots"
        )
    test = source.split.test if tested else source.split.test.subset([])
    return SeedData(
        source=source,
        views=views,
        teacher=teacher,
        unlabelled_teacher=None
        if source.unlabelled is None
        else teacher_features(source.model, source.stream(source.unlabelled)),
        test_images=pixels(test, source.model.preprocess),
        test_labels=torch.from_numpy(test.labels),
    )


def parts_of(data: SeedData, scored: Scored) -> list[LearnedPart]:
    """Return all labelled images and the test images; or each fold, with the other folds to learn from."""
    everything = torch.arange(len(data.labels))
    if scored == "tested":
        return [LearnedPart(train=everything, images=data.test_images, labels=data.test_labels)]
    images = next(iter(data.views.values()))[0]
    return [
        LearnedPart(
            train=everything[~torch.isin(everything, held_out)], images=images[held_out], labels=data.labels[held_out]
        )
        for held_out in folds(data.labels, seed=data.source.recipe.seed)
    ]


def part_features(data: SeedData, part: LearnedPart, section: QuantizationSection | None) -> PartFeatures:
    """Return features by the encoder calibrated on the part's own training images; by the float one without section.

    The scored images take no part in calibration, so that a lever which is fitted to the images (rounding, offsets,
    learned scales) gains nothing from having seen them.
    """
    model = data.source.model
    encoder: nn.Module = model.clip.visual  # type: ignore[assignment]
    if section is not None:
        images = next(iter(data.views.values()))[0, part.train]
        encoder = quantized_encoder(data.source, images, section)
    learned = {}
    for flip, views in data.views.items():
        teacher = data.teacher[flip][:, part.train]
        student = teacher
        if section is not None:
            student = torch.stack(
                [image_features(encoder, view[part.train], model.preprocess, model.compute) for view in views]
            )
        learned[flip] = CachedFeatures(
            student=student,
            teacher=teacher,
            labels=data.labels[part.train],
            unlabelled=_unlabelled_features(data, encoder),
        )
    return PartFeatures(
        learned=learned,
        scored=image_features(encoder, part.images, model.preprocess, model.compute),
        labels=part.labels,
    )


def _unlabelled_features(data: SeedData, encoder: nn.Module) -> Unlabelled | None:
    if data.unlabelled_teacher is None or data.source.unlabelled is None:
        return None
    model, images = data.source.model, data.source.stream(data.source.unlabelled)
    student = image_features(encoder, images, model.preprocess, model.compute)
    return Unlabelled(student=student, teacher=data.unlabelled_teacher)


def quantized_encoder(source: Source, images: Tensor, section: QuantizationSection) -> nn.Module:
    """Return the image tower as the recipe's method quantizes it, calibrated on uint8 images `(N, 3, H, W)`."""
    if source.recipe.method == "as-released":
        return as_released.quantize_encoder(source.model, images, section)
    return calibrate_encoder(source.model, images, section.scheme()).encoder


def learned_student(source: Source, features: CachedFeatures) -> Student:
    """Return the student of the recipe and its method after learning."""
    recipe = source.recipe
    if recipe.method == "as-released" and recipe.learn.adapter:
        return as_released.learn_as_released(source, features)
    return learn_student(source, features)


def learn_section(recipe: Recipe, variant: Variant) -> LearnSection:
    """Return the recipe's [learn] with the variant's changes."""
    return msgspec.structs.replace(recipe.learn, **variant.learn)


def quantization_section(recipe: Recipe, variant: Variant) -> QuantizationSection | None:
    """Return the recipe's [quantization] with the variant's changes; None where the encoder stays in full precision."""
    return None if variant.full_precision else msgspec.structs.replace(recipe.quantization, **variant.quantization)


def ablate(
    recipe: Recipe,
    seeds: Sequence[int],
    variants: Sequence[Variant],
    scored: Scored,
    *,
    progress: Callable[[str], None] = lambda _: None,
    right: dict[str, list[Tensor]] | None = None,
) -> dict[str, tuple[list[float], int]]:
    """Score every variant under every seed.

    Args:
        recipe: that the variants change.
        seeds: of the images to learn from, and of learning.
        variants: what is compared.
        scored: on what images.
        progress: told of each figure.
        right: gets by variant name, for each seed, which images are named rightly `(images,)`, in one order for all.

    Returns:
        By variant name: share of right answers for each seed, and the number of images of one seed.
    """
    results: dict[str, tuple[list[float], int]] = {variant.name: ([], 0) for variant in variants}
    for seed in seeds:
        data = open_seed(msgspec.structs.replace(recipe, seed=seed), variants, tested=scored == "tested")
        answers: dict[str, list[Tensor]] = {variant.name: [] for variant in variants}
        parts = parts_of(data, scored)
        for section, group in _by_encoder(recipe, variants):
            for part in parts:
                features = part_features(data, part, section)
                for variant in group:
                    answers[variant.name].append(_learn_and_answer(data.source, variant, features))
            for variant in group:
                correct = torch.cat(answers[variant.name])
                share = float(correct.float().mean())
                results[variant.name] = ([*results[variant.name][0], share], len(correct))
                if right is not None:
                    right.setdefault(variant.name, []).append(correct)
                progress(f"seed {seed}, {variant.name}: {100 * share:.2f} %")
    return results


def ablation_key(recipe: Recipe, seeds: Sequence[int], variants: Sequence[Variant], scored: Scored) -> str:
    """Return the key of an ablation: of the model, the images of every seed, the recipe, the variants and the code."""
    images = []
    for seed in seeds:
        split = read_split(recipe.data, seed=seed)
        sets = (split.train, split.test) if scored == "tested" else (split.train,)
        images.append([[one.digests(), one.labels.tolist(), one.class_names] for one in sets])
        if (unlabelled := read_unlabelled(recipe.data, split)) is not None:
            images[-1].append([unlabelled.digests()])
    source = open_source(recipe)
    inputs = [images, source.templates, source.class_prompts, [asdict(variant) for variant in variants], seeds, scored]
    return source.key(ABLATE, recipe=recipe.anywhere(), inputs=inputs)


def _by_encoder(recipe: Recipe, variants: Sequence[Variant]) -> list[tuple[QuantizationSection | None, list[Variant]]]:
    groups: list[tuple[QuantizationSection | None, list[Variant]]] = []
    for variant in variants:
        section = quantization_section(recipe, variant)
        same = [group for known, group in groups if known == section]
        if same:
            same[0].append(variant)
        else:
            groups.append((section, [variant]))
    return groups


def _learn_and_answer(source: Source, variant: Variant, features: PartFeatures) -> Tensor:
    recipe = source.recipe
    section = learn_section(recipe, variant)
    quantization = quantization_section(recipe, variant)
    if quantization is None:  # then the text tower of the paper's track is in full precision too
        quantization = msgspec.structs.replace(recipe.quantization, text=False)
    source = replace(source, recipe=msgspec.structs.replace(recipe, learn=section, quantization=quantization))
    whole = features.learned[section.flip]
    train = whole.first_views(section.views)
    student = learned_student(source, train)
    with torch.no_grad():
        text = F.normalize(student.text_embedding(), dim=-1)
        logits = student.image_embedding(features.scored.to(text.device)) @ text.T
    return logits.argmax(-1).cpu() == features.labels
