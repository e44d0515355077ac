"""Methods and levers side by side, over seeds, on features that are computed once for each seed.

Two scores: `cross_validated` learns on three quarters of the labelled images and scores the rest, so that levers are
chosen without a look at the test images; `tested` learns on all of them and scores the test images.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from p4q_edge.calibrate import calibrate_encoder
from p4q_edge.data import pixels
from p4q_edge.image_encoder import encode_batches
from p4q_edge.learn import CachedFeatures, LearningRun, learn
from p4q_edge.load import to_batch
from p4q_edge.pipeline import BATCH_SIZE, Source, cache_features, new_student, open_source
from p4q_edge.quantized_text import calibrate_text
from p4q_edge.recipe import LearnSection, Recipe

logger = logging.getLogger(__name__)

FOLDS = 4

Scored = Literal["tested", "cross_validated"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the comparison.

    Attributes:
        name: as printed.
        full_precision: learn on, and test with, features of the float encoder.
        learn: keys of the recipe's [learn] that differ.
    """

    name: str
    full_precision: bool = False
    learn: Mapping[str, Any] = field(default_factory=dict)


PTQ = {"prompts": False, "adapter": False}


def method_variants(section: LearnSection) -> tuple[Variant, ...]:
    """The recipe's method, each of its parts alone, and what it is measured against."""
    switched = {"distillation": 0.0 if section.distillation else 1.0}
    return (
        Variant(name="zero-shot", full_precision=True, learn=PTQ),
        Variant(name="learned prompts (CoOp)", full_precision=True, learn={"adapter": False, "distillation": 0.0}),
        Variant(name="PTQ", learn=PTQ),
        Variant(name="prompts only", learn={"adapter": False}),
        Variant(name="adapter only", learn={"prompts": False}),
        Variant(name=f"P4Q {'without' if section.distillation else 'with'} distillation", learn=switched),
        Variant(name="P4Q"),
    )


def lever_variants() -> tuple[Variant, ...]:
    """The recipe as it is, and one changed lever in each further row."""
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"context_init": "", "num_context_tokens": 16},
        {"context_init": "", "num_context_tokens": 4},
        {"zero_init": False},
        {"residual_ratio": 0.2},
        {"residual_ratio": 0.5},
        {"learn_ratio": True},
        {"prompt_pull": 1.0},
        {"feature_loss": 1.0},
        {"label_smoothing": 0.1},
        {"distillation": 0.3},
        {"distillation": 1.0},
        {"distillation": 1.0, "kl_temperature": 3.0},
        {"epochs": 50},
        {"epochs": 200},
        {"epochs": 400},
        {"adapter_rate": 1e-3},
        {"adapter_rate": 5e-3},
        {"context_rate": 1e-3},
        {"context_rate": 5e-3},
        {"batch_size": 32},
        {"batch_size": 64},
        {"views": 4},
        {"views": 8},
    )
    return tuple(
        Variant(name=", ".join(f"{key} = {value}" for key, value in change.items()) or "as the recipe", learn=change)
        for change in changes
    )


@dataclass(frozen=True, kw_only=True)
class SeedFeatures:
    """Everything of one seed that no variant changes.

    Attributes:
        views: cached training features by the number of views.
        test_student, test_teacher: features of the test images, ``(images, dim)``; empty where only folds are scored.
        test_labels: ``(images,)``.
    """

    source: Source
    views: dict[int, CachedFeatures]
    test_student: Tensor
    test_teacher: Tensor
    test_labels: Tensor


def seed_features(recipe: Recipe, variants: Sequence[Variant], *, tested: bool) -> SeedFeatures:
    """Open a recipe's data under its seed, quantize the encoder and run all images through both encoders."""
    source = open_source(recipe)
    images = pixels(source.split.train, source.model.preprocess)
    encoder = calibrate_encoder(source.model, images, recipe.quantization.scheme()).encoder
    views: dict[int, CachedFeatures] = {}
    for variant in variants:
        learn_section = msgspec.structs.replace(recipe.learn, **variant.learn)
        if learn_section.views not in views:
            viewed = replace(source, recipe=msgspec.structs.replace(recipe, learn=learn_section))
            views[learn_section.views] = cache_features(viewed, encoder, images)
    empty = torch.empty(0)
    if not tested:
        return SeedFeatures(source=source, views=views, test_student=empty, test_teacher=empty, test_labels=empty)
    test_images = pixels(source.split.test, source.model.preprocess)
    batches = [to_batch(chunk, source.model.preprocess) for chunk in torch.split(test_images, BATCH_SIZE)]
    return SeedFeatures(
        source=source,
        views=views,
        test_student=encode_batches(encoder, batches),
        test_teacher=encode_batches(source.model.clip.visual, batches),  # type: ignore[arg-type]
        test_labels=torch.from_numpy(source.split.test.labels),
    )


def score_variant(features: SeedFeatures, variant: Variant, scored: Scored) -> tuple[float, int]:
    """Share of right answers and the number of images that it is over."""
    recipe = features.source.recipe
    section = msgspec.structs.replace(recipe.learn, **variant.learn)
    source = replace(features.source, recipe=msgspec.structs.replace(recipe, learn=section))
    train = features.views[section.views]
    if variant.full_precision:
        train = replace(train, student=train.teacher)
    if scored == "tested":
        test = features.test_teacher if variant.full_precision else features.test_student
        correct = _learn_and_answer(source, train, test, features.test_labels)
        return float(correct.float().mean()), len(correct)
    parts = [
        _learn_and_answer(source, _without(train, held_out), train.student[0, held_out], train.labels[held_out])
        for held_out in folds(train.labels, seed=recipe.seed)
    ]
    correct = torch.cat(parts)
    return float(correct.float().mean()), len(correct)


def folds(labels: Tensor, *, seed: int) -> list[Tensor]:
    """`FOLDS` disjoint sets of indices that share out each class evenly."""
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty_like(labels)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        fold_of[members[order]] = torch.arange(len(members)) % FOLDS
    return [(fold_of == fold).nonzero().flatten() for fold in range(FOLDS)]


def ablate(
    recipe: Recipe,
    seeds: Sequence[int],
    variants: Sequence[Variant],
    scored: Scored,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, tuple[list[float], int]]:
    """Score every variant under every seed.

    Returns:
        By variant name: share of right answers for each seed, and the number of images of one seed.
    """
    results: dict[str, tuple[list[float], int]] = {variant.name: ([], 0) for variant in variants}
    for seed in seeds:
        seeded = msgspec.structs.replace(recipe, seed=seed)
        features = seed_features(seeded, variants, tested=scored == "tested")
        for variant in variants:
            share, count = score_variant(features, variant, scored)
            shares, _ = results[variant.name]
            results[variant.name] = ([*shares, share], count)
            progress(f"seed {seed}, {variant.name}: {100 * share:.2f} %")
    return results


def _without(features: CachedFeatures, held_out: Tensor) -> CachedFeatures:
    keep = torch.ones(len(features.labels), dtype=torch.bool)
    keep[held_out] = False
    return CachedFeatures(
        student=features.student[:, keep], teacher=features.teacher[:, keep], labels=features.labels[keep]
    )


def _learn_and_answer(source: Source, train: CachedFeatures, test: Tensor, labels: Tensor) -> Tensor:
    student, tower = new_student(source)
    if tower is not None and source.recipe.quantization.text:
        calibrate_text(tower, student.prompts)
    learn(student, train, source.recipe.learn, seed=source.recipe.seed, run=LearningRun())
    if tower is not None and source.recipe.quantization.text:
        calibrate_text(tower, student.prompts)
    with torch.no_grad():
        logits = student.image_embedding(test) @ F.normalize(student.text_embedding(), dim=-1).T
    return logits.argmax(-1) == labels
