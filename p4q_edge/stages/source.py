"""What a recipe names, opened."""

from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from p4q_edge.data import ImageStream, Split, read_class_prompts, read_split, read_unlabelled, read_words
from p4q_edge.models import (
    ALONE,
    Compute,
    LoadedModel,
    PreprocessKeys,
    Team,
    class_prompts_of,
    decoding_workers,
    load_model,
)
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import ImageSet
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.storage import StageCode, stage_key
from p4q_edge.stages.features import TrainViews


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a recipe names, opened: the float model, the images, the words; and who computes it."""

    recipe: Recipe
    model: LoadedModel
    split: Split
    templates: tuple[str, ...]
    class_prompts: dict[str, tuple[str, ...]]
    train_digests: tuple[str, ...]
    unlabelled: ImageSet | None = None
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
        section, device = self.recipe.learn, self.model.compute.device
        return TrainViews(
            images=self.split.train,
            spec=self.model.preprocess,
            count=section.views,
            flip=section.flip,
            seed=self.recipe.seed,
            workers=decoding_workers(self.recipe.compute, device, processes=self.team.size),
            pinned=device.type == "cuda",
        )

    def stream(self, images: ImageSet) -> ImageStream:
        """Return images as the model takes them, decoded when they are asked for."""
        return replace(self.views, images=images).stream()

    @property
    def unlabelled_digests(self) -> list[str]:
        """Of the images without labels; none where nothing asks about them."""
        return self.unlabelled.digests() if self.unlabelled is not None else []

    @cached_property
    def calibration_digests(self) -> list[str]:
        """Of the images without labels that ranges are measured on; none where those are the labelled ones."""
        return [] if self.split.calibration is None else self.split.calibration.digests()

    def key(self, code: StageCode, *, recipe: object, inputs: object = None) -> str:
        """Return the key of a stage, whose inputs are the model, the images learned from and any further ones."""
        model = [self.model.info, self.model.preprocess, self.recipe.model.quick_gelu]
        images = [self.train_digests, self.split.train.labels.tolist(), self.calibration_digests, self.recipe.seed]
        return stage_key(code, inputs=[model, images, inputs], recipe=recipe)


def open_source(recipe: Recipe, split: Split | None = None, team: Team = ALONE) -> Source:
    """Stage `load`, and the data of a recipe.

    Args:
        recipe: names them.
        split: what its [data] gave already.
        team: processes that take part in `prepare` and `learn_stage`, each with its own source.

    Raises:
        UsageError: sections of the recipe contradict each other, or name what is not there.
        InputError: images or words cannot be used.
    """
    if problem := recipe.contradiction():
        raise UsageError(problem)
    compute = Compute.of(recipe.compute, team)  # a device that is not here is told of before anything is read
    with task("load", total=2) as advance:
        model = open_model(recipe).on(compute)
        model = replace(model, preprocess=msgspec.structs.replace(model.preprocess, orient=recipe.data.orient))
        advance(1)
        split = split or read_split(recipe.data, seed=recipe.seed)
        train_digests = tuple(split.train.digests())
    source = Source(
        recipe=recipe,
        model=model,
        split=split,
        templates=read_words(recipe.data.templates, key="data.templates"),
        class_prompts=read_class_prompts(recipe.data.class_prompts, split.train.class_names),
        train_digests=train_digests,
        unlabelled=read_unlabelled(recipe.data, split) if split.unlabelled is None else split.unlabelled,
        team=team,
    )
    _ = source.prompts  # what is wrong with a template is said here, not after the minutes of calibration
    return source


def open_model(recipe: Recipe) -> LoadedModel:
    """Return the model that a recipe names; `demo` is the one that is shipped."""
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
