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

from p4q_edge.calibration import CalibratedEncoder, calibrate_encoder, calibrate_text
from p4q_edge.data import ImageStream, Split, draw_by_class, read_class_prompts, read_split, read_words
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
    learn,
    make_student,
    read_tensors,
    write_tensors,
)
from p4q_edge.models import (
    ALONE,
    Batches,
    Compute,
    FoldedClassifier,
    LoadedModel,
    PreprocessKeys,
    PromptLearner,
    Team,
    TextSide,
    class_prompts_of,
    encoder_of,
    initial_context,
    load_model,
    make_text_side,
    template_embeddings,
)
from p4q_edge.recipe import Recipe, to_toml
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import ImageSet
from p4q_edge.runtime.storage import StageCode, atomic_write, stage_key
from p4q_edge.stages.encoder_file import encoder_digest, restore_encoder, save_encoder
from p4q_edge.stages.features import FEATURES, Tower, TrainViews, cached_features, store_features
from p4q_edge.stages.folding import fold, restore_student
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.top1_limit import Judge, limit_top1

logger = logging.getLogger(__name__)

_MODULES = tuple(
    f"p4q_edge.stages.{name}" for name in ("pipeline", "encoder_file", "features", "folding", "top1_limit")
)
CALIBRATE = StageCode(modules=_MODULES, rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.calibration"))
LEARN = StageCode(
    modules=_MODULES, rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.calibration", "p4q_edge.learning")
)

CALIBRATED_KEY = "calibrated"
"""In the metadata of what was learned: the key of the calibrated encoder that it was learned on."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a recipe names, opened: the float model, the images, the words; and who computes it."""

    recipe: Recipe
    model: LoadedModel
    split: Split
    templates: tuple[str, ...]
    class_prompts: dict[str, tuple[str, ...]]
    train_digests: tuple[str, ...]
    team: Team = ALONE

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.split.train.class_names

    @property
    def prompts(self) -> dict[str, tuple[str, ...]]:
        """The hand-written prompts of each class, in label order."""
        return class_prompts_of(self.class_names, templates=self.templates, class_prompts=self.class_prompts)

    @property
    def views(self) -> TrainViews:
        """The views of the labelled images that the recipe learns from."""
        section, spec = self.recipe.learn, self.model.preprocess
        return TrainViews(
            images=self.split.train,
            spec=spec,
            count=section.views,
            flip=section.flip,
            seed=self.recipe.seed,
            workers=self.recipe.compute.workers,
        )

    def stream(self, images: ImageSet) -> ImageStream:
        """Images as the model takes them, decoded when they are asked for."""
        return ImageStream(images=images, spec=self.model.preprocess, workers=self.recipe.compute.workers)

    def key(self, code: StageCode, *, recipe: object, inputs: object = None) -> str:
        """Return the key of a stage, whose inputs are the model, the images learned from and any further ones."""
        model = [self.model.info, self.model.preprocess, self.recipe.model.quick_gelu]
        images = [self.train_digests, self.split.train.labels.tolist(), self.recipe.seed]
        return stage_key(code, inputs=[model, images, inputs], recipe=recipe)


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


def open_source(recipe: Recipe, split: Split | None = None, team: Team = ALONE) -> Source:
    """Stage `load`, and the data of a recipe.

    Args:
        split: what its [data] gave already.
        team: processes that take part in `prepare` and `learn_stage`, each with its own source.
    """
    compute = Compute.of(recipe.compute, team)  # a device that is not here is told of before anything is read
    model = open_model(recipe).on(compute)
    model = replace(model, preprocess=msgspec.structs.replace(model.preprocess, orient=recipe.data.orient))
    split = split or read_split(recipe.data, seed=recipe.seed)
    return Source(
        recipe=recipe,
        model=model,
        split=split,
        templates=read_words(recipe.data.templates, key="data.templates"),
        class_prompts=read_class_prompts(recipe.data.class_prompts, split.train.class_names),
        train_digests=tuple(split.train.digests()),
        team=team,
    )


def open_model(recipe: Recipe) -> LoadedModel:
    """The model that a recipe names; ``demo`` is the one that is shipped."""
    section = recipe.model
    if section.name == "demo":
        from p4q_edge.demo import MODEL_DIR

        if section.pretrained:
            raise UsageError("model 'demo' brings its own weights; remove model.pretrained")
        loaded = load_model(f"local-dir:{MODEL_DIR}")
        return replace(loaded, info=msgspec.structs.replace(loaded.info, name="demo"))
    keys = PreprocessKeys(
        image_size=section.image_size,
        mean=section.mean,
        std=section.std,
        interpolation=section.interpolation,
        resize_mode=section.resize_mode,
    )
    return load_model(
        section.name, section.pretrained, quick_gelu=section.quick_gelu, licence=section.license, keys=keys
    )


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
    code, part = (LEARN, [section, learn_section]) if limited else (CALIBRATE, [section])
    key = source.key(
        code,
        recipe=[*part, source.recipe.compute.precision],
        inputs=[source.class_names, source.prompts] if limited else None,
    )
    calibrated = source.team.after_first(lambda: calibrated_in(files, source, key=key))
    features = cache_features(source, calibrated.encoder, files, key=encoder_digest(calibrated), team=source.team)
    return Prepared(source=source, calibrated=calibrated, features=features, key=key)


def calibrated_in(files: RunFiles, source: Source, *, key: str) -> CalibratedEncoder:
    """The calibrated encoder of a run folder, which the first process of a team makes where it is not there.

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
        raise UsageError(
            f"expected the run folder {files.folder} to be the same for all processes; process {source.team.rank} "
            "finds no calibrated encoder of this run there. Name a folder on a file system that they share"
        )
    calibrated = calibrate(source, files)
    save_encoder(calibrated, files.encoder, key=key)
    return calibrated


def calibrate(source: Source, files: RunFiles) -> CalibratedEncoder:
    """Quantize the image tower on the recipe's calibration images, within its limit on the loss of accuracy."""
    section = source.recipe.quantization
    images = source.stream(calibration_set(source)).held()
    logger.info("calibrate: %d images, %s", len(images), section.scheme().label)
    calibrated = calibrate_encoder(source.model, images, section.scheme())
    if section.max_top1_drop is None:
        return calibrated
    features = cache_features(source, calibrated.encoder, files, key=encoder_digest(calibrated))
    return keep_top1(source, calibrated, features)


def calibration_set(source: Source) -> ImageSet:
    """The labelled images that ranges are measured on."""
    train, limit = source.split.train, source.recipe.quantization.calibration_images
    return train if len(train) <= limit else train.subset(draw_by_class(train.labels, limit, seed=source.recipe.seed))


def keep_top1(source: Source, calibrated: CalibratedEncoder, features: CachedFeatures) -> CalibratedEncoder:
    """Put layers into float until the recipe's `max_top1_drop` is kept on the labelled images, cross-validated."""
    recipe, limit = source.recipe, source.recipe.quantization.max_top1_drop
    assert limit is not None

    def learn_on(chosen: Tensor) -> Student:
        return learn_student(source, features.of_images(chosen))

    batches = Batches.of(source.model, source.stream(source.split.train))
    judge = Judge.of(batches, features.labels, learn_on, seed=recipe.seed)
    return limit_top1(calibrated, source.model.clip.visual, judge, limit)  # type: ignore[arg-type]


def cache_features(
    source: Source, encoder: nn.Module, files: RunFiles | None = None, *, key: str = "", team: Team = ALONE
) -> CachedFeatures:
    """Features of all views of the labelled images, by the quantized and by the float encoder.

    Args:
        files: keep them there and take what is there already; None keeps them in memory.
        key: digest of everything that decides the quantized encoder; needed with `files`.
        team: computes a share of them in each process; needs `files`.
    """
    views = source.views
    sinks: list[FeatureSink] = [HeldFeatures(images=len(views.images)) for _ in range(2)]
    if files:
        part = [views.count, views.flip, source.recipe.compute.precision]
        keys = [source.key(FEATURES, recipe=part, inputs=inputs) for inputs in (key, None)]
        sinks = [
            FeatureStore(folder=files.features, name=name, key=of_tower, views=views.count, images=len(views.images))
            for name, of_tower in zip(("student", "teacher"), keys, strict=True)
        ]
    teacher: nn.Module = source.model.clip.visual  # type: ignore[assignment]
    compute = source.model.compute
    return cached_features(
        views,
        Tower(encoder=encoder, sink=sinks[0], compute=compute),
        Tower(encoder=teacher, sink=sinks[1], normalized=True, compute=compute),
        team,
    )


def student_features(source: Source, encoder: nn.Module) -> Tensor:
    """Features of all views of the labelled images by one encoder, ``(views, images, dim)``, in memory."""
    sink = HeldFeatures(images=len(source.split.train))
    store_features(source.views, [Tower(encoder=encoder, sink=sink, compute=source.model.compute)])
    return sink.read()


def hand_written_embeddings(source: Source) -> Tensor:
    """Class embeddings of the recipe's templates by the float text tower, ``(classes, dim)`` normalized."""
    for name, prompts in source.prompts.items():
        more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
        logger.debug("prompt of class %r: %r%s", name, prompts[0], more)
    return template_embeddings(
        encoder_of(source.model.clip),
        source.model.tokenizer,
        source.class_names,
        templates=source.templates,
        class_prompts=source.class_prompts,
    )


def new_prompts(source: Source, generator: torch.Generator | None = None) -> tuple[PromptLearner, TextSide]:
    """The prompts of a recipe before their first step, and the text tower they run through.

    Raises:
        UsageError: they cannot be learned through this tower, or a prompt is too long for it.
    """
    recipe = source.recipe
    tower = make_text_side(source.model.clip, recipe.quantization.scheme())
    context = initial_context(
        tower,
        source.model.tokenizer,
        words=recipe.learn.context_init,
        num_tokens=recipe.learn.num_context_tokens,
        generator=generator or torch.Generator().manual_seed(recipe.seed),
    )
    return PromptLearner(tower, source.model.tokenizer, source.class_names, context=context), tower


def new_student(source: Source) -> tuple[Student, TextSide | None]:
    """The student of a recipe before its first step, and the text tower its prompts run through.

    Where that tower is quantized, its ranges are those of the prompts at the start.
    """
    recipe = source.recipe
    generator = torch.Generator().manual_seed(recipe.seed)
    prompts, tower = new_prompts(source, generator) if recipe.learn.prompts else (None, None)
    student = make_student(
        prompts=prompts,
        hand_written=hand_written_embeddings(source),
        logit_scale=source.model.logit_scale,
        section=recipe.learn,
        adapter_scheme=recipe.quantization.adapter_scheme(),
        generator=generator,
    )
    measure_text(source, student, tower)
    return student, tower


def measure_text(source: Source, student: Student, tower: TextSide | None) -> None:
    """Measure the ranges of a text tower that the recipe quantizes, on the student's prompts as they are now."""
    if tower is not None and source.recipe.quantization.text:
        calibrate_text(tower, student.prompts)


def learn_student(source: Source, features: CachedFeatures) -> Student:
    """The student of a recipe after learning from cached features; nothing is stored."""
    recipe = source.recipe
    student, tower = new_student(source)
    learn(student, features, recipe.learn, seed=recipe.seed, run=LearningRun())
    measure_text(source, student, tower)
    return student


def learn_stage(
    prepared: Prepared, files: RunFiles | None, *, progress: Callable[[int, float], None] | None = None
) -> Learned:
    """Stages `learn` and `fold`. Without `files` nothing is stored."""
    recipe, team = prepared.source.recipe, prepared.source.team
    student, tower = new_student(prepared.source)
    words = [prepared.source.class_names, prepared.source.prompts]
    key = prepared.source.key(LEARN, recipe=recipe.learn, inputs=[prepared.key, words])
    stored = read_tensors(files.learned, key=key) if files else None
    if stored is not None:
        logger.info("learn: unchanged, taken from %s", files.learned if files else "")
        tensors, facts = stored
        restore_student(student, tensors)
        text, curve = tensors["text_embedding"], decode_curve(facts.get("curve", ""))
    else:
        run = LearningRun(checkpoint=files.checkpoint if files else None, key=key, team=team)
        if progress is not None:
            run = replace(run, progress=progress)
        learn(student, prepared.features, recipe.learn, seed=recipe.seed, run=run)
        measure_text(prepared.source, student, tower)
        with torch.no_grad():
            text = student.text_embedding()
        curve = tuple(run.curve)
        if files and team.first:
            files.curve.unlink(missing_ok=True)  # of what was learned before
            facts = {CALIBRATED_KEY: prepared.key, "curve": encode_curve(curve)}
            write_tensors(files.learned, {**student.state_dict(), "text_embedding": text}, key=key, metadata=facts)
    classifier = fold(prepared.source.model, prepared.calibrated, student, text)
    return Learned(prepared=prepared, student=student, classifier=classifier, key=key, curve=curve)
