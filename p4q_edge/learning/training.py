"""Stage `learn`: context vectors and the low-bit adapter, on cached features of the frozen towers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from p4q_edge.learning.cached_features import Batch, CachedFeatures
from p4q_edge.learning.checkpoint import Checkpoint, flush_checkpoint, load_checkpoint, save_checkpoint
from p4q_edge.learning.curves import CurvePoint
from p4q_edge.learning.losses import contrastive_loss, cosine_loss, distillation_loss
from p4q_edge.learning.student import Student, Teacher
from p4q_edge.learning.tensor_file import read_tensors
from p4q_edge.models import ALONE, Team
from p4q_edge.recipe import LearnSection
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, ProcessLostError
from p4q_edge.runtime.progress import tracked

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LearningRun:
    """Where a run keeps its checkpoint and tells its progress.

    Attributes:
        checkpoint: file to resume from and to save to, or None.
        key: digest of everything that the run depends on; a checkpoint with another key is not resumed.
        teacher_checkpoint: the same of a teacher that is learned first.
        progress: called after each epoch with its number (from 1) and its mean loss.
        curve: gets a point for each epoch; those of the epochs before a checkpoint too.
        team: processes that take a share of the classes; all of them call `learn`, and all end with the same student,
            which is that of one process alone.
    """

    checkpoint: Path | None = None
    key: str = ""
    teacher_checkpoint: Path | None = None
    progress: Callable[[int, float], None] = field(default=lambda epoch, loss: None)
    curve: list[CurvePoint] = field(default_factory=list)
    team: Team = ALONE

    @property
    def saved_to(self) -> Path | None:
        """The checkpoint where this process is the one that writes it."""
        return self.checkpoint if self.team.first else None


def learn_in_place(
    student: Student,
    features: CachedFeatures,
    section: LearnSection,
    *,
    seed: int,
    run: LearningRun,
    teacher: Teacher | None = None,
) -> None:
    """Learn the student in place, first its prompts alone where the section says so; then freeze its adapter's scales.

    The checkpoint is written when the run is interrupted and at least every few seconds, after whole epochs, so
    that an interrupted run loses at most one epoch. A resumed run ends with the same numbers as an unbroken one:
    each epoch draws its order from a generator seeded by its number.

    Args:
        teacher: a learned one, where the section names it.

    Source: P4Q, arXiv:2409.17634, section 3.4.
    """
    if section.taught_by == "learned" and teacher is None:
        raise ValueError("expected the learned teacher that learn.teacher names, got none")
    teacher = Teacher.zero_shot(student) if section.taught_by == "zero-shot" else teacher
    run.team.take_after_first(student)
    _divide(student, run.team, section)
    task = _Task(features=features, section=section, seed=seed, run=run, teacher=teacher)
    first = section.prompt_passes(len(features.labels)) if student.prompts is not None else 0
    if first and not task.has_checkpoint:
        before = replace(run, key=f"{run.key} prompts")
        alone = msgspec.structs.replace(section, context_rate=section.prompt_rate, epochs=first)
        _run_epochs(student.prompts_alone(), replace(task, section=alone, run=before))
    _run_epochs(student, replace(task, first=first))
    if run.team.size > 1:
        _divide(student, ALONE, section)
    if student.adapter is not None:
        student.adapter.freeze(features.student.flatten(0, 1))
    student.requires_grad_(False)


def _divide(student: Student, team: Team, section: LearnSection) -> None:
    """Let each process of a team run a share of the classes through the text tower."""
    if student.prompts is not None:
        student.prompts.limit_memory(section.text_memory_mib << 20)
        student.prompts.divide(team)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a student learns from and by.

    Attributes:
        first: number of epochs that other steps took before.
    """

    features: CachedFeatures
    section: LearnSection
    seed: int
    run: LearningRun
    teacher: Teacher | None
    first: int = 0

    @property
    def count(self) -> int:
        """Of the labelled images."""
        return len(self.features.labels)

    @property
    def has_checkpoint(self) -> bool:
        """Whether this very task was begun."""
        return self.run.checkpoint is not None and read_tensors(self.run.checkpoint, key=self.run.key) is not None


def _run_epochs(student: Student, task: _Task) -> None:
    section, run = task.section, task.run
    groups = student.parameter_groups(section)
    if not groups:
        return
    optimizer = torch.optim.AdamW(groups, weight_decay=section.weight_decay)
    last = task.first + section.passes(task.count)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, last - task.first)
    state = Checkpoint(module=student, optimizer=optimizer, schedule=schedule, curve=run.curve)
    start = task.first + (load_checkpoint(run.checkpoint, state, key=run.key) if run.checkpoint else 0)
    if start > task.first:
        logger.info("resuming after epoch %d of %d from %s", start, last, run.checkpoint)
    done = start
    try:
        for epoch in tracked(range(start, last), "learn"):
            loss = _run_epoch(student, task, optimizer, epoch=epoch)
            if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
                step = (epoch + 1) * section.steps_of(task.count)
                _refuse_divergence(torch.tensor(torch.nan), step=step, task=task)
            done = epoch + 1
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            run.curve.append(CurvePoint(epoch=done, loss=loss, rates=rates))
            schedule.step()
            if run.saved_to:
                save_checkpoint(run.saved_to, state, key=run.key, epoch=done - task.first, final=done == last)
            run.progress(done, loss)
    except (KeyboardInterrupt, ProcessLostError):
        # The weights hold half an epoch by now; the pending snapshot is of the last whole one.
        if run.saved_to:
            flush_checkpoint(run.saved_to, state)
        logger.warning("interrupted after epoch %d of %d; run the same command to go on", done, last)
        raise


def _run_epoch(student: Student, task: _Task, optimizer: torch.optim.Optimizer, *, epoch: int) -> float:
    section, features = task.section, task.features
    generator = torch.Generator().manual_seed((task.seed << 20) + epoch)
    views, count, _ = features.student.shape
    order = torch.randperm(count, generator=generator)
    view = torch.randint(views, (count,), generator=generator)
    others: list[Tensor | None] = [None] * section.steps_of(count)
    if features.unlabelled is not None and task.teacher is not None:
        drawn = torch.randint(len(features.unlabelled.student), (count,), generator=generator)
        others = [*torch.split(drawn, section.batch_size)]
    total = 0.0
    for step, chosen in enumerate(torch.split(order, section.batch_size)):
        batch = features.batch(view[chosen], chosen, others[step], student.hand_written.device)
        loss = _gradients(student, batch, task, step=epoch * section.steps_of(count) + step + 1)
        optimizer.step()
        total += loss * len(chosen)
    return total / count


def _gradients(student: Student, batch: Batch, task: _Task, *, step: int) -> float:
    """Leave the gradients of one batch in the student's parameters, and return its loss; the same in a whole team.

    Where the device's memory runs out, the text tower keeps half as much of its activations from there on, and computes
    the rest twice: the gradient stays exact, but for the order of its sums. In a team, whose steps are one for all, it
    does not.

    Raises:
        InputError: the loss is not finite.
        EnvironmentNotAbleError: memory runs out with the least that can be kept.
    """
    section, team = task.section, task.run.team
    while True:
        try:
            loss = batch_loss(student, batch, section, task.teacher)
            student.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach().clone()
            # They are equal already where the processors are; others would drift apart.
            team.take_first([total, *(p.grad for p in student.parameters() if p.grad is not None)])
            _refuse_divergence(total, step=step, task=task)
            return float(total)
        except torch.OutOfMemoryError as error:
            if team.size > 1 or student.prompts is None or not student.prompts.keep_less():
                key = "batch_size" if team.size == 1 else "text_memory_mib"
                raise EnvironmentNotAbleError(
                    f"a step of learning needs more memory than {student.hand_written.device} has left. Lower "
                    f"learn.{key} (now {getattr(section, key)}), or take --device cpu"
                ) from error
            logger.warning(
                "%s ran out of memory in step %d; the text tower keeps at most %.1f MiB from here on",
                *(student.hand_written.device, step, student.prompts.budget_bytes / 2**20),
            )


def _refuse_divergence(loss: Tensor, *, step: int, task: _Task) -> None:
    """End a run whose loss is not finite any more, before its weights are stored.

    Raises:
        InputError: it is not finite; the message has the step and the key to lower.
    """
    if torch.isfinite(loss):
        return
    value = float(loss.detach())
    alone = task.section.prompt_steps and not task.first
    names = ("prompt_rate",) if alone else ("context_rate", "adapter_rate", "class_rate")
    rates = {f"learn.{name}": getattr(task.section, name) for name in names}
    highest = max(rates, key=lambda name: rates[name])
    raise InputError(
        f"learning diverged: the loss is {value:g} in step {step}. Lower {highest} (now {rates[highest]:g}), or "
        "leave it out for its default"
    )


def batch_loss(student: Student, batch: Batch, section: LearnSection, teacher: Teacher | None = None) -> Tensor:
    """Return the whole loss of one batch, `()`.

    Images without labels count in the terms that need none.
    """
    text = student.text_embedding()
    image, exact, labels = student.image_embedding(batch.student), batch.teacher, batch.labels
    logits = student.logit_scale * image @ text.T
    loss = contrastive_loss(logits=logits[: len(labels)], labels=labels, label_smoothing=section.label_smoothing)
    if teacher is not None:
        divergence = distillation_loss(
            student_logits=logits, teacher_logits=teacher.logits(exact), temperature=section.kl_temperature
        )
        loss = loss + section.teacher_weight * divergence
    if section.prompt_pull and student.prompts is not None:
        loss = loss + section.prompt_pull * cosine_loss(embedding=text, target=student.hand_written)
    if section.feature_loss and student.adapter is not None:
        loss = loss + section.feature_loss * cosine_loss(embedding=image, target=F.normalize(exact, dim=-1))
    return loss
