"""The stages in order, each from files to files, each skipped when what it depends on is unchanged.

A run folder holds the resolved recipe, the calibrated encoder with its cached features, the learning checkpoint and
what was learned. Each file carries the digest of everything that made it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor, nn

from p4q_edge.calibration import CalibratedEncoder, calibrate_encoder
from p4q_edge.data import draw_by_class
from p4q_edge.learning import (
    CachedFeatures,
    CurvePoint,
    FeatureSink,
    FeatureStore,
    HeldFeatures,
    LearningRun,
    Student,
    decode_curve,
    encode_curve,
    read_tensors,
    write_tensors,
)
from p4q_edge.models import ALONE, Batches, FoldedClassifier, Team, naming_process
from p4q_edge.quant import forget_restored_weights
from p4q_edge.recipe import to_toml
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import ImageSet
from p4q_edge.runtime.machine import give_back_memory
from p4q_edge.runtime.storage import StageCode, atomic_write
from p4q_edge.runtime.wording import number_of
from p4q_edge.stages.encoder_file import encoder_digest, restore_encoder, save_encoder
from p4q_edge.stages.features import FEATURES, Tower, TrainViews, cached_features, store_features, unlabelled_features
from p4q_edge.stages.folding import fold, restore_student
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source
from p4q_edge.stages.students import learn_student, measure_text, new_prompts, new_student, teach
from p4q_edge.stages.top1_limit import Judge, limit_top1

logger = logging.getLogger(__name__)

_NAMES = ("pipeline", "encoder_file", "features", "folding", "source", "students", "top1_limit")
_MODULES = tuple(f"p4q_edge.stages.{name}" for name in _NAMES)
CALIBRATE = StageCode(modules=_MODULES, rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.calibration"))
LEARN = StageCode(
    modules=_MODULES, rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.calibration", "p4q_edge.learning")
)

CALIBRATED_KEY = "calibrated"
"""In the metadata of what was learned: the key of the calibrated encoder that it was learned on."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """After `calibrate`: the quantized encoder and what both towers say about the labelled images."""

    source: Source
    calibrated: CalibratedEncoder
    features: CachedFeatures
    key: str


@dataclass(frozen=True, kw_only=True)
class Learned:
    """After `learn` and `fold`."""

    prepared: Prepared
    student: Student
    classifier: FoldedClassifier
    key: str
    curve: tuple[CurvePoint, ...] = ()


def prepare(source: Source, files: RunFiles) -> Prepared:
    """Stage `calibrate`: quantize the encoder, cache the features of both towers.

    Raises:
        UsageError: the recipe's method is a baseline, which has no engine; or it asks for prompts that cannot be
            learned through the model's text tower, or that are too long for it.
    """
    if source.recipe.method != "p4q":
        raise UsageError(
            f"method {source.recipe.method!r} is a baseline to compare with: its asymmetric grid has no engine. "
            'Set method = "p4q" to build; to measure the baseline: p4q-edge learn --ablate methods --recipe FILE'
        )
    if source.recipe.learn.prompts:
        new_prompts(source)  # what cannot be learned is said here, not after the minutes of calibration
    section, learn_section = source.recipe.quantization, source.recipe.learn
    limited = section.max_top1_drop is not None  # then learning decides what is in float
    # How many images there are, not how many there might be: a higher limit may take the same ones.
    taken = msgspec.structs.replace(section, calibration_images=len(calibration_set(source)))
    code, part = (LEARN, [taken, learn_section]) if limited else (CALIBRATE, [taken])
    key = source.key(
        code,
        recipe=[*part, source.recipe.compute.precision],
        inputs=learning_inputs(source) if limited else None,
    )
    calibrated = source.team.after_first(lambda: calibrated_in(files, source, key=key))
    features = cache_features(source, calibrated.encoder, files, key=encoder_digest(calibrated), team=source.team)
    # Learning begins here, which needs the most memory, and runs no image tower.
    forget_restored_weights(calibrated.encoder)
    give_back_memory()
    return Prepared(source=source, calibrated=calibrated, features=features, key=key)


def calibrated_in(files: RunFiles, source: Source, *, key: str) -> CalibratedEncoder:
    """Return the calibrated encoder of a run folder, which the first process of a team makes where it is not there.

    Raises:
        UsageError: it is not there for another process.
    """
    if source.team.first:
        atomic_write(files.recipe, to_toml(source.recipe).encode(), force=True)
    calibrated = restore_encoder(files.encoder, source.model, source.recipe.quantization.scheme(), key=key)
    if calibrated is not None:
        logger.info("calibrate: unchanged, taken from %s", files.folder)
        return calibrated
    if not source.team.first:
        raise naming_process(
            UsageError(
                f"expected the run folder {files.folder} to be the same for all processes; process {source.team.rank} "
                "finds no calibrated encoder of this run there. Name a folder on a file system that they share"
            )
        )
    calibrated = calibrate_stage(source, files)
    save_encoder(calibrated, files.encoder, key=key)
    give_back_memory()
    return calibrated


def calibrate_stage(source: Source, files: RunFiles) -> CalibratedEncoder:
    """Quantize the image tower on the recipe's calibration images, within its limit on the loss of accuracy."""
    section = source.recipe.quantization
    images = source.stream(calibration_set(source)).held()
    logger.info("calibrate: %s, %s", number_of(len(images), "image"), section.scheme().label)
    calibrated = calibrate_encoder(source.model, images, section.scheme())
    if section.max_top1_drop is None:
        return calibrated
    features = cache_features(source, calibrated.encoder, files, key=encoder_digest(calibrated))
    return keep_top1(source, calibrated, features)


def calibration_set(source: Source) -> ImageSet:
    """Return the images that ranges are measured on, labelled unless nothing is learned."""
    found, limit = source.split.measured, source.recipe.quantization.calibration_images
    return found if len(found) <= limit else found.subset(draw_by_class(found.labels, limit, seed=source.recipe.seed))


def keep_top1(source: Source, calibrated: CalibratedEncoder, features: CachedFeatures) -> CalibratedEncoder:
    """Put layers into float until the recipe's `max_top1_drop` is kept on the labelled images, cross-validated."""
    recipe, limit = source.recipe, source.recipe.quantization.max_top1_drop
    assert limit is not None
    batches = Batches.of(source.model, source.stream(source.split.train))
    learn_on = lambda chosen: learn_student(source, features.of_images(chosen))  # noqa: E731
    judge = Judge.of(batches, features.labels, learn_on, seed=recipe.seed)
    return limit_top1(calibrated, source.model.clip.visual, judge, limit)  # type: ignore[arg-type]


def learning_inputs(source: Source) -> list[object]:
    """Return what a head is learned from besides the model and the labelled images."""
    return [source.class_names, source.prompts, source.unlabelled_digests]


def cache_features(
    source: Source, encoder: nn.Module, files: RunFiles | None = None, *, key: str = "", team: Team = ALONE
) -> CachedFeatures:
    """Return features of all views of labelled images, by the quantized and the float encoder, and of those without.

    Args:
        source: with the images.
        encoder: the quantized one.
        files: keep them there and take what is there already; None keeps them in memory.
        key: digest of everything that decides the quantized encoder; needed with `files`.
        team: computes a share of them in each process; needs `files`.
    """
    features = cached_features(source.views, *_towers(source, source.views, encoder, files, key=key), team)
    if source.unlabelled is None:
        return features
    views = replace(source.views, images=source.unlabelled, count=1)
    towers = _towers(source, views, encoder, files, key=key, kind="unlabelled")
    return replace(features, unlabelled=unlabelled_features(views, *towers, team))


def _towers(
    source: Source, views: TrainViews, encoder: nn.Module, files: RunFiles | None, *, key: str, kind: str = ""
) -> tuple[Tower, Tower]:
    """Return the quantized and the float encoder, each with where its features of some views go."""
    sinks: list[FeatureSink] = [HeldFeatures(images=len(views.images)) for _ in range(2)]
    if files:
        part = [views.count, views.flip, source.recipe.compute.precision]
        others = [source.unlabelled_digests] if kind else []
        keys = [source.key(FEATURES, recipe=part, inputs=[inputs, *others]) for inputs in (key, None)]
        sinks = [
            FeatureStore(folder=files.features, name=name, key=of_tower, views=views.count, images=len(views.images))
            for name, of_tower in zip((f"{kind}student", f"{kind}teacher"), keys, strict=True)
        ]
    teacher: nn.Module = source.model.clip.visual  # type: ignore[assignment]
    compute = source.model.compute
    return (
        Tower(encoder=encoder, sink=sinks[0], compute=compute),
        Tower(encoder=teacher, sink=sinks[1], exact=True, compute=compute),
    )


def student_features(source: Source, encoder: nn.Module) -> Tensor:
    """Return features of all views of the labelled images by one encoder, `(views, images, dim)`, in memory."""
    sink = HeldFeatures(images=len(source.split.train))
    store_features(source.views, [Tower(encoder=encoder, sink=sink, compute=source.model.compute)])
    return sink.read()


def learn_stage(
    prepared: Prepared, files: RunFiles | None, *, progress: Callable[[int, float], None] | None = None
) -> Learned:
    """Stages `learn` and `fold`. Without `files` nothing is stored."""
    recipe, team = prepared.source.recipe, prepared.source.team
    student, tower = new_student(prepared.source)
    give_back_memory()  # of the text tower that read the templates
    key = prepared.source.key(LEARN, recipe=recipe.learn, inputs=[prepared.key, learning_inputs(prepared.source)])
    stored = read_tensors(files.learned, key=key) if files else None
    if stored is not None:
        logger.info("learn: unchanged, taken from %s", files.learned if files else "")
        tensors, facts = stored
        restore_student(student, tensors)
        text, curve = tensors["text_embedding"], decode_curve(facts.get("curve", ""))
    else:
        run = LearningRun(key=key, team=team)
        if files:
            run = replace(run, checkpoint=files.checkpoint, teacher_checkpoint=files.teacher)
        if progress is not None:
            run = replace(run, progress=progress)
        teach(prepared.source, student, prepared.features, run)
        measure_text(prepared.source, student, tower)
        with torch.no_grad():
            text = student.text_embedding()
        curve = tuple(run.curve)
        if files and team.first:
            files.curve.unlink(missing_ok=True)  # of what was learned before
            facts = {CALIBRATED_KEY: prepared.key, "curve": encode_curve(curve)}
            write_tensors(files.learned, {**student.state_dict(), "text_embedding": text}, key=key, metadata=facts)
    give_back_memory()
    classifier = fold(prepared.source.model, prepared.calibrated, student, text)
    return Learned(prepared=prepared, student=student, classifier=classifier, key=key, curve=curve)
