"""Students and teachers of a recipe: made, and learned from cached features."""

import logging
from dataclasses import replace

import msgspec
import torch
from torch import Tensor

from p4q_edge.calibration import calibrate_text
from p4q_edge.learning import CachedFeatures, LearningRun, Student, Teacher, learn_in_place, make_student
from p4q_edge.models import PromptLearner, TextSide, encoder_of, initial_context, make_text_side, template_embeddings
from p4q_edge.stages.source import Source

logger = logging.getLogger(__name__)


def hand_written_embeddings(source: Source) -> Tensor:
    """Return class embeddings of the recipe's templates by the float text tower, `(classes, dim)` normalized."""
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
    """Return the prompts of a recipe before their first step, and the text tower they run through.

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
    """Return the student of a recipe before its first step, and the text tower its prompts run through.

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
    """Measure a text tower that the recipe quantizes, and the anchor, on the student's prompts as they are now."""
    if tower is not None and source.recipe.quantization.text:
        calibrate_text(tower, student.prompts)
    if source.recipe.learn.anchor_prompts:
        student.anchor_to_templates()


def learn_student(source: Source, features: CachedFeatures, run: LearningRun | None = None) -> Student:
    """Return the student of a recipe after learning from cached features, taught as the recipe says.

    Args:
        source: with the recipe.
        features: of what is learned from.
        run: where it keeps its checkpoint; None stores nothing.
    """
    student, tower = new_student(source)
    teach(source, student, features, run or LearningRun())
    measure_text(source, student, tower)
    return student


def teach(source: Source, student: Student, features: CachedFeatures, run: LearningRun) -> None:
    """Learn a student in place, behind its teacher where the recipe names one that is learned itself."""
    recipe = source.recipe
    teacher = learned_teacher(source, features, run) if recipe.learn.taught_by == "learned" else None
    learn_in_place(student, features, recipe.learn, seed=recipe.seed, run=run, teacher=teacher)


def learned_teacher(source: Source, features: CachedFeatures, run: LearningRun) -> Teacher:
    """Return the recipe's own head, learned on float towers of images and texts, with no teacher."""
    recipe = source.recipe
    alone = msgspec.structs.replace(recipe.learn, teacher="none", distillation=None)
    exact = msgspec.structs.replace(recipe.quantization, text=False)
    logger.info("learn: the teacher, on full-precision features")
    head = learn_student(
        replace(source, recipe=msgspec.structs.replace(recipe, learn=alone, quantization=exact)),
        features.in_full_precision(),
        LearningRun(checkpoint=run.teacher_checkpoint, key=f"{run.key} teacher", team=run.team),
    )
    return Teacher.of(head)
