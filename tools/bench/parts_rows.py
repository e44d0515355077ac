"""Rows of the comparison of parts, and how each is learned and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import torch
from accuracy_recipes import FLOAT
from parts_scene import PAPER, Features, Scene
from rivals import Head, Labelled, linear_probe, lp_plus_plus, tip_adapter
from torch import Tensor

from p4q_edge.data import folds
from p4q_edge.evaluation import COOP, PROMPTS_ALONE, PTQ
from p4q_edge.learning import CachedFeatures, LearningRun, Student
from p4q_edge.recipe import LearnSection
from p4q_edge.runtime.statistics import auroc
from p4q_edge.stages import Source, hand_written_embeddings, learn_student, new_student
from p4q_edge.stages.students import measure_text, teach

Group = Literal["rivals", "parts", "teachers", "prompts", "schedule"]
Rival = Callable[[Labelled, int], Head]
"""Another head, from labelled images and a number of steps."""

NOISY_VIEWS = 7
ALONE_FIRST = {"context_init": "", "num_context_tokens": 16, "prompt_steps": 1000, "prompt_rate": 1e-2}
STRICT = {"class_residual": False}
NO_PROMPTS = {"prompts": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method.

    Attributes:
        learn: keys of [learn] that differ from the recipe's.
        rival: another head in place of ours.
        judged: by cross-validation on the labelled images too.
        in_float: learned on full-precision features, and asked with those of the width.
        new_classes: what it learns on half of the classes is asked about the others too.
        noise: on the features that it learns from, as a share of their root mean square; 0 leaves them.
        averaged: its values are the means over the last half of the epochs.
    """

    name: str
    group: Group
    learn: Mapping[str, Any] = field(default_factory=dict)
    rival: Rival | None = None
    judged: bool = True
    in_float: bool = False
    new_classes: bool = False
    noise: float = 0.0
    averaged: bool = False


def _tip_adapter(data: Labelled, steps: int) -> Head:
    return tip_adapter(data, steps=steps)


def _linear_probe(data: Labelled, _: int) -> Head:
    return linear_probe(data)


def _around_the_text(data: Labelled, _: int) -> Head:
    return linear_probe(data, around_text=True)


def _lp_plus_plus(data: Labelled, _: int) -> Head:
    return lp_plus_plus(data)


DEFAULT = "P4Q"
NO_TEACHER = "P4Q, no teacher"
"""It differs from the default where a recipe has a teacher: at the paper's settings."""
WITHOUT_LABELS = "unlabelled images"
"""Ends the names of rows that learn from images without labels too."""
MOVED = "P4Q of full precision, moved"
"""The same head learned where nothing is quantized: what it loses at a width is the loss by quantization."""
ROWS: tuple[Row, ...] = (
    Row(name="zero-shot", group="rivals", learn=PTQ, new_classes=True, judged=False),
    Row(name=DEFAULT, group="parts", new_classes=True),
    Row(name=MOVED, group="parts", in_float=True, judged=False),
    Row(name="P4Q strict (prompts and adapter)", group="parts", learn=STRICT, new_classes=True),
    Row(name="adapter and residual", group="parts", learn=NO_PROMPTS, new_classes=True),
    Row(name="prompts and residual", group="parts", learn={"adapter": False}),
    Row(name="residual (TaskRes)", group="rivals", learn=PTQ | {"class_residual": True}, new_classes=True),
    Row(name="adapter (CLIP-Adapter)", group="rivals", learn=PTQ | {"adapter": True}, new_classes=True),
    Row(name="prompts (CoOp)", group="rivals", learn=PROMPTS_ALONE | COOP, new_classes=True, judged=False),
    Row(name="Tip-Adapter-F", group="rivals", rival=_tip_adapter, judged=False),
    Row(name="linear probe", group="rivals", rival=_linear_probe, judged=False),
    Row(name="linear probe around the text", group="rivals", rival=_around_the_text, judged=False),
    Row(name="LP++", group="rivals", rival=_lp_plus_plus, judged=False),
    Row(name="P4Q, learned teacher, unlabelled images", group="teachers", learn={"teacher": "learned"}),
    Row(name="P4Q, learned teacher", group="teachers", learn={"teacher": "learned"}),
    Row(name=NO_TEACHER, group="teachers", learn={"teacher": "none"}),
    Row(name="P4Q, zero-shot teacher", group="teachers", learn={"teacher": "zero-shot"}),
    Row(name="P4Q, zero-shot teacher, unlabelled images", group="teachers", learn={"teacher": "zero-shot"}),
    Row(name="strict, zero-shot teacher", group="teachers", learn=STRICT | {"teacher": "zero-shot"}),
    Row(
        name="adapter and residual, learned teacher, unlabelled images",
        group="teachers",
        learn=NO_PROMPTS | {"teacher": "learned"},
    ),
    Row(name="strict, prompts alone first", group="prompts", learn=STRICT | ALONE_FIRST, new_classes=True),
    Row(name="strict, anchored", group="prompts", learn=STRICT | {"anchor_prompts": True}, new_classes=True),
    Row(
        name="strict, anchored, prompts alone first",
        group="prompts",
        learn=STRICT | ALONE_FIRST | {"anchor_prompts": True},
        new_classes=True,
    ),
    Row(name="P4Q, anchored", group="prompts", learn={"anchor_prompts": True}, new_classes=True),
    Row(name="P4Q, prompts alone first", group="prompts", learn=ALONE_FIRST),
    Row(name="P4Q, anchored, prompts alone first", group="prompts", learn=ALONE_FIRST | {"anchor_prompts": True}),
    Row(name="P4Q, label smoothing 0.1", group="schedule", learn={"label_smoothing": 0.1}),
    Row(
        name="adapter and residual, label smoothing 0.1", group="schedule", learn=NO_PROMPTS | {"label_smoothing": 0.1}
    ),
    Row(name="P4Q, features with noise 0.3", group="schedule", noise=0.3),
    Row(name="P4Q, averaged over epochs", group="schedule", averaged=True),
)
BY_NAME = {row.name: row for row in ROWS}


def section_of(source: Source, row: Row, steps: int) -> LearnSection:
    """The recipe's [learn] with a row's changes; with `steps` all learning has so many."""
    section: LearnSection = msgspec.structs.replace(source.recipe.learn, **row.learn)
    if steps:
        section = msgspec.structs.replace(section, steps=steps, prompt_steps=min(steps, section.prompt_steps))
    return section


def fit(source: Source, row: Row, features: CachedFeatures, steps: int = 0) -> Head:
    """Learn a row's head on features."""
    if not row.name.endswith(WITHOUT_LABELS):
        features = replace(features, unlabelled=None)
    features = features.in_full_precision() if row.in_float else features
    section = section_of(source, row, steps)
    source = replace(source, recipe=msgspec.structs.replace(source.recipe, learn=section))
    device = source.model.compute.device
    if row.rival is None:
        seen = features.first_views(section.views)
        seen = with_noise(seen, row.noise, seed=source.recipe.seed) if row.noise else seen
        return _head(learn_averaged(source, seen) if row.averaged else learn_student(source, seen))
    data = Labelled(
        features=features.student[0].to(device),
        labels=features.labels.to(device),
        text=hand_written_embeddings(source),
        scale=source.model.logit_scale,
        seed=source.recipe.seed,
    )
    return row.rival(data, section.steps)


def with_noise(features: CachedFeatures, share: float, *, seed: int) -> CachedFeatures:
    """Add views of each image whose features have normal noise of a share of their root mean square."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(some: Tensor) -> Tensor:
        others = some[:1].expand(NOISY_VIEWS, -1, -1)
        noise = torch.randn(others.shape, generator=generator) * (share * some.square().mean().sqrt())
        return torch.cat([some, others + noise])

    return replace(features, student=noisy(features.student), teacher=noisy(features.teacher))


def learn_averaged(source: Source, features: CachedFeatures) -> Student:
    """Learn the student of a recipe, and take the means of its values over the last half of the epochs."""
    section, count = source.recipe.learn, len(features.labels)
    student, tower = new_student(source)
    learned = dict(student.named_parameters())
    sums = {name: torch.zeros_like(value) for name, value in learned.items()}
    alone = section.prompt_passes(count) if student.prompts is not None else 0
    last = alone + section.passes(count)
    first = alone + section.passes(count) // 2 + 1

    @torch.no_grad()
    def after(epoch: int, _: float) -> None:
        for name, value in learned.items() if epoch >= first else ():
            sums[name] += value
        for name, value in learned.items() if epoch == last else ():
            value.copy_(sums[name] / (last - first + 1))

    teach(source, student, features, LearningRun(progress=after))
    measure_text(source, student, tower)
    return student


def _head(student: Student) -> Head:
    with torch.no_grad():
        text = student.text_embedding()

    @torch.no_grad()
    def logits(features: Tensor) -> Tensor:
        return student.image_embedding(features) @ text.T

    return logits


def answers(head: Head, features: Tensor, source: Source) -> Tensor:
    """The class that a head names for each row of features, ``(N,)``."""
    with torch.no_grad():
        return head(features.to(source.model.compute.device)).argmax(-1).cpu()


def tested(scene: Scene, row: Row, width: str, features: Features) -> dict[str, Tensor]:
    """Whether each tested image is named rightly, as it is and corrupted, by a head of all labelled ones."""
    source = scene.at(width)
    head = fit(source, row, features.learned, scene.place.steps)
    labels = features.test_labels
    return {kind: answers(head, rows, source) == labels[: len(rows)] for kind, rows in features.tested.items()}


def cross_validated(scene: Scene, row: Row, width: str, features: Features) -> dict[str, Tensor]:
    """Whether each labelled image is named rightly by what was learned from the other folds."""
    source, labels = scene.at(width), features.learned.labels
    everything, right = torch.arange(len(labels)), torch.zeros(len(labels), dtype=torch.bool)
    for held_out in folds(labels, seed=scene.seed):
        if len(held_out):
            others = features.learned.of_images(everything[~torch.isin(everything, held_out)])
            head = fit(source, row, others, scene.place.steps)
            right[held_out] = answers(head, features.learned.student[0, held_out], source) == labels[held_out]
    return {"cross-validated": right}


def held_out(scene: Scene, row: Row, width: str, features: Features) -> dict[str, Tensor]:
    """Whether images are named rightly that are neither labelled for learning nor tested.

    By these a default may be chosen where labelled images are too few to be shared out into folds.
    """
    source = scene.at(width)
    unlabelled = features.learned.unlabelled
    assert unlabelled is not None
    head = fit(source, row, features.learned, scene.place.steps)
    return {"held out": answers(head, unlabelled.student, source) == scene.known}


def base_to_new(scene: Scene, row: Row, width: str, features: Features) -> dict[str, Tensor]:
    """Learn the first half of the classes; right answers on tested images among each half, and among all classes.

    Where only the first half is asked about, images of the others are unknown: `AUROC` is the chance that the largest
    probability of an image of the first half is above that of one of the others.
    """
    source = scene.at(width)
    section = section_of(source, row, scene.place.steps)
    source = replace(source, recipe=msgspec.structs.replace(source.recipe, learn=section))
    half = len(source.class_names) // 2
    chosen = (features.learned.labels < half).nonzero().flatten()
    learned = replace(features.learned.of_images(chosen).first_views(section.views), unlabelled=None)
    base = learn_student(with_classes(source, half, chosen.tolist()), learned)
    whole, _ = new_student(source)
    transfer(base, whole)
    rows, labels = features.tested["clean"], features.test_labels
    with torch.no_grad():
        logits = _head(whole)(rows.to(source.model.compute.device)).cpu()
    old = labels < half
    scale = source.model.logit_scale
    best = (scale * logits[:, :half].double()).softmax(-1).amax(-1).numpy()
    return {
        "AUROC": torch.tensor(auroc(best[old.numpy()], best[~old.numpy()]).value),
        "base": logits[old, :half].argmax(-1) == labels[old],
        "new": logits[~old, half:].argmax(-1) + half == labels[~old],
        "base among all": logits[old].argmax(-1) == labels[old],
        "new among all": logits[~old].argmax(-1) == labels[~old],
    }


def with_classes(source: Source, count: int, images: Sequence[int]) -> Source:
    """A source of the first classes alone, and of the labelled images of these."""
    train = source.split.train.subset(images)
    train = replace(train, class_names=train.class_names[:count], found_names=train.found_names[:count])
    return replace(source, split=replace(source.split, train=train))


@torch.no_grad()
def transfer(base: Student, whole: Student) -> None:
    """Put what was learned for the first classes into the student of all: prompts and adapter serve the others too."""
    if base.prompts is not None and whole.prompts is not None:
        whole.prompts.context.copy_(base.prompts.context)
    if base.adapter is not None and whole.adapter is not None:
        whole.adapter.load_state_dict(base.adapter.state_dict())
        whole.adapter.set_dynamic(False)
    if base.class_residual is not None and whole.class_residual is not None:
        whole.class_residual[: len(base.class_residual)] = base.class_residual


KINDS: dict[str, Callable[[Scene, Row, str, Features], dict[str, Tensor]]] = {
    "tested": tested,
    "cross-validated": cross_validated,
    "base-to-new": base_to_new,
    "held-out": held_out,
}


def cells(widths: Sequence[str]) -> list[tuple[str, Row, str]]:
    """What is measured, by kind, row and width; what tells most comes first."""
    judged = [width for width in ("W4A4", "W8A8") if width in widths]
    turns: list[tuple[str, list[str]]] = [
        ("tested", [width for width in (FLOAT, "W8A8", "W4A4") if width in widths]),
        ("cross-validated", judged),
        ("base-to-new", [width for width in (FLOAT, "W8A8", "W4A4") if width in widths]),
        ("held-out", list(widths)),
        ("tested", [width for width in widths if width not in (FLOAT, *judged)]),
        ("cross-validated", [width for width in widths if width not in (FLOAT, *judged)]),
    ]
    return [
        (kind, row, width) for kind, some in turns for row in ROWS for width in some if not _skipped(kind, row, width)
    ]


def _skipped(kind: str, row: Row, width: str) -> bool:
    if kind == "cross-validated" and not row.judged:
        return True
    if kind == "base-to-new" and not row.new_classes:
        return True
    if kind == "held-out" and row.name.endswith(WITHOUT_LABELS):
        return True
    if row.name == NO_TEACHER and width not in PAPER:
        return True
    return width == FLOAT and (row.in_float or "learned teacher" in row.name)
