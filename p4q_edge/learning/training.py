"""Stage `learn`: context vectors and the low-bit adapter, on cached features of the frozen towers."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.learning.checkpoint import Checkpoint, flush_checkpoint, load_checkpoint, save_checkpoint
from p4q_edge.learning.curves import CurvePoint
from p4q_edge.learning.losses import contrastive_loss, cosine_loss, distillation_loss
from p4q_edge.models import ALONE, Adapter, PromptLearner, Team
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import LearnSection
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, ProcessLostError
from p4q_edge.runtime.progress import tracked

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """What the frozen image towers say about the labelled images.

    Attributes:
        student: features of the quantized encoder, ``(views, images, dim)``.
        teacher: normalized embeddings of the float encoder, ``(views, images, dim)``.
        labels: ``(images,)`` int64.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor

    def of_images(self, chosen: Tensor) -> "CachedFeatures":
        """The same of some of the images, by their indices ``(n,)`` int64."""
        return CachedFeatures(
            student=self.student[:, chosen], teacher=self.teacher[:, chosen], labels=self.labels[chosen]
        )

    def batch(self, view: Tensor, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """One view of each of some images, by indices ``(n,)`` int64, on a device: student, teacher and labels."""
        return (
            self.student[view, chosen].to(device),
            self.teacher[view, chosen].to(device),
            self.labels[chosen].to(device),
        )

    def digest(self) -> str:
        """SHA-256 of all values."""
        state = hashlib.sha256()
        for tensor in (self.student, self.teacher, self.labels):
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()


class Student(nn.Module):
    """What is learned: prompts or constant class embeddings, an adapter or none, residuals of classes or none.

    Attributes:
        prompts: None keeps the hand-written class embeddings.
        adapter: None keeps the quantized features.
        class_residual: added to the class embeddings, ``(classes, dim)``, zero at first; None adds nothing.
        hand_written: class embeddings of the templates, ``(classes, dim)`` normalized.

    Source: TaskRes, Yu et al., arXiv:2211.10277, for the residual; its factor is left to the learning rate.
    """

    hand_written: Tensor

    def __init__(
        self,
        *,
        prompts: PromptLearner | None,
        adapter: Adapter | None,
        hand_written: Tensor,
        logit_scale: float,
        class_residual: bool = False,
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.adapter = adapter
        self.class_residual = nn.Parameter(torch.zeros_like(hand_written)) if class_residual else None
        self.logit_scale = logit_scale
        self.register_buffer("hand_written", hand_written, persistent=False)

    def text_embedding(self) -> Tensor:
        """Class embeddings ``(classes, dim)``, normalized."""
        embedding: Tensor = self.hand_written if self.prompts is None else self.prompts()
        return embedding if self.class_residual is None else F.normalize(embedding + self.class_residual, dim=-1)

    def image_embedding(self, features: Tensor) -> Tensor:
        """Adapted image embeddings ``(N, dim)``, normalized."""
        return F.normalize(features if self.adapter is None else self.adapter(features), dim=-1)

    def parameter_groups(self, section: LearnSection) -> list[dict[str, object]]:
        """Optimizer groups: the context, the adapter and the class residuals, each with its learning rate."""
        groups: list[dict[str, object]] = []
        if self.prompts is not None:
            groups.append({"params": [self.prompts.context], "lr": section.context_rate, "name": "context"})
        if self.adapter is not None:
            learned = [p for p in self.adapter.parameters() if p.requires_grad]
            groups.append({"params": learned, "lr": section.adapter_rate, "name": "adapter"})
        if self.class_residual is not None:
            groups.append({"params": [self.class_residual], "lr": section.class_rate, "name": "class_residual"})
        return groups


def make_student(
    *,
    prompts: PromptLearner | None,
    hand_written: Tensor,
    logit_scale: float,
    section: LearnSection,
    adapter_scheme: QuantScheme,
    generator: torch.Generator,
) -> Student:
    """A student before its first step, on the device of the class embeddings."""
    adapter = None
    if section.adapter:
        adapter = Adapter(
            hand_written.shape[1],
            adapter_scheme,
            ratio=section.residual_ratio,
            learn_ratio=section.learn_ratio,
            zero_init=section.zero_init,
            generator=generator,
        )
    student = Student(
        prompts=prompts,
        adapter=adapter,
        hand_written=hand_written,
        logit_scale=logit_scale,
        class_residual=section.class_residual,
    )
    return student.to(hand_written.device)


@dataclass(frozen=True, kw_only=True)
class LearningRun:
    """Where a run keeps its checkpoint and tells its progress.

    Attributes:
        checkpoint: file to resume from and to save to, or None.
        key: digest of everything that the run depends on; a checkpoint with another key is not resumed.
        progress: called after each epoch with its number (from 1) and its mean loss.
        curve: gets a point for each epoch; those of the epochs before a checkpoint too.
        team: processes that take a share of the classes and of each batch; all of them call `learn`, and all end with
            the same student.
    """

    checkpoint: Path | None = None
    key: str = ""
    progress: Callable[[int, float], None] = field(default=lambda epoch, loss: None)
    curve: list[CurvePoint] = field(default_factory=list)
    team: Team = ALONE

    @property
    def saved_to(self) -> Path | None:
        """The checkpoint where this process is the one that writes it."""
        return self.checkpoint if self.team.first else None


def learn(student: Student, features: CachedFeatures, section: LearnSection, *, seed: int, run: LearningRun) -> None:
    """Learn the student in place; then freeze its adapter's scales.

    The checkpoint is written when the run is interrupted and at least every few seconds, after whole epochs, so
    that an interrupted run loses at most one epoch. A resumed run ends with the same numbers as an unbroken one:
    each epoch draws its order from a generator seeded by its number.

    Source: P4Q, arXiv:2409.17634, section 3.4.
    """
    groups = student.parameter_groups(section)
    run.team.take_after_first(student)
    _divide(student, run.team, section)
    if groups:
        _run_epochs(student, features, section, seed=seed, run=run, groups=groups)
    if run.team.size > 1:
        _divide(student, ALONE, section)
    if student.adapter is not None:
        student.adapter.freeze(features.student.flatten(0, 1))
    if student.prompts is not None:
        student.prompts.requires_grad_(False)
    if student.class_residual is not None:
        student.class_residual.requires_grad_(False)


def _divide(student: Student, team: Team, section: LearnSection) -> None:
    """Let each process of a team run a share of the classes through the text tower."""
    if student.prompts is not None:
        student.prompts.divide(team)
        student.prompts.limit_memory(section.text_memory_mib << 20)


def _run_epochs(
    student: Student,
    features: CachedFeatures,
    section: LearnSection,
    *,
    seed: int,
    run: LearningRun,
    groups: list[dict[str, object]],
) -> None:
    optimizer = torch.optim.AdamW(groups, weight_decay=section.weight_decay)
    epochs = section.passes(len(features.labels))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    state = Checkpoint(module=student, optimizer=optimizer, schedule=schedule, curve=run.curve)
    start = load_checkpoint(run.checkpoint, state, key=run.key) if run.checkpoint else 0
    if start:
        logger.info("resuming after epoch %d of %d from %s", start, epochs, run.checkpoint)
    done = start
    try:
        for epoch in tracked(range(start, epochs), "learn"):
            loss = _run_epoch(
                student, features, section, optimizer, epoch=Epoch(seed=seed, number=epoch, team=run.team)
            )
            if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
                steps = -(-len(features.labels) // section.batch_size)
                _refuse_divergence(torch.tensor(torch.nan), step=(epoch + 1) * steps, section=section)
            done = epoch + 1
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            run.curve.append(CurvePoint(epoch=done, loss=loss, rates=rates))
            schedule.step()
            if run.saved_to:
                save_checkpoint(run.saved_to, state, key=run.key, epoch=done, final=done == epochs)
            run.progress(done, loss)
    except (KeyboardInterrupt, ProcessLostError):
        # The weights hold half an epoch by now; the pending snapshot is of the last whole one.
        if run.saved_to:
            flush_checkpoint(run.saved_to, state)
        logger.warning("interrupted after epoch %d of %d; run the same command to go on", done, epochs)
        raise


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What tells an epoch from the others, and who computes it.

    Attributes:
        seed: of the run.
        number: from 0.
        team: see `LearningRun`.
    """

    seed: int
    number: int
    team: Team


def _run_epoch(
    student: Student,
    features: CachedFeatures,
    section: LearnSection,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: Epoch,
) -> float:
    generator = torch.Generator().manual_seed((epoch.seed << 20) + epoch.number)
    views, count, _ = features.student.shape
    order = torch.randperm(count, generator=generator)
    view = torch.randint(views, (count,), generator=generator)
    total = 0.0
    for step, chosen in enumerate(torch.split(order, section.batch_size), 1):
        batch = features.batch(view[chosen], chosen, student.hand_written.device)
        step += epoch.number * -(-count // section.batch_size)
        loss = _gradients(student, batch, section, step=step, team=epoch.team)
        optimizer.step()
        total += loss * len(chosen)
    return total / count


def _gradients(
    student: Student, batch: tuple[Tensor, Tensor, Tensor], section: LearnSection, *, step: int, team: Team
) -> float:
    """Leave the gradients of one batch in the student's parameters, and return its loss; the same in a whole team.

    Where the device's memory runs out, the text tower keeps half as much of its activations from there on, and computes
    the rest twice: the gradient stays exact, but for the order of its sums. In a team, whose steps are one for all, it
    does not.

    Raises:
        InputError: the loss is not finite.
        EnvironmentNotAbleError: memory runs out with the least that can be kept.
    """
    while True:
        try:
            loss = batch_loss(student, *batch, section, team)
            student.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach().clone()
            team.add([total, *(p.grad for p in student.parameters() if p.grad is not None)])
            _refuse_divergence(total, step=step, section=section)
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


def _refuse_divergence(loss: Tensor, *, step: int, section: LearnSection) -> None:
    """End a run whose loss is not finite any more, before its weights are stored.

    Raises:
        InputError: it is not finite; the message has the step and the key to lower.
    """
    if torch.isfinite(loss):
        return
    value = float(loss.detach())
    rates = {f"learn.{name}": getattr(section, name) for name in ("context_rate", "adapter_rate", "class_rate")}
    highest = max(rates, key=lambda name: rates[name])
    raise InputError(
        f"learning diverged: the loss is {value:g} in step {step}. Lower {highest} (now {rates[highest]:g}), or "
        "leave it out for its default"
    )


def batch_loss(
    student: Student,
    features: Tensor,
    teacher_embedding: Tensor,
    labels: Tensor,
    section: LearnSection,
    team: Team = ALONE,
) -> Tensor:
    """The whole loss of one batch, ``()``; in a team each process has the part of its images, and they add up to it.

    Args:
        features: of the quantized encoder, ``(N, dim)``.
        teacher_embedding: of the float encoder, ``(N, dim)`` normalized.
        labels: ``(N,)`` int64.
    """
    text = student.text_embedding()
    # Of the whole batch in each process: the adapter's scales follow it, and are the same whoever computes.
    image, rows = student.image_embedding(features), team.rows(len(labels))
    share = (rows.stop - rows.start) / len(labels)
    if not share:  # the mean over no images is no number
        return 0.0 * (text.sum() + image.sum())
    image, teacher_embedding, labels = image[rows], teacher_embedding[rows], labels[rows]
    logits = student.logit_scale * image @ text.T
    loss = contrastive_loss(logits=logits, labels=labels, label_smoothing=section.label_smoothing)
    if section.distillation:
        teacher_logits = student.logit_scale * teacher_embedding @ student.hand_written.T
        loss = loss + section.distillation * distillation_loss(
            student_logits=logits, teacher_logits=teacher_logits, temperature=section.kl_temperature
        )
    if section.prompt_pull and student.prompts is not None:
        loss = loss + section.prompt_pull * cosine_loss(embedding=text, target=student.hand_written)
    if section.feature_loss and student.adapter is not None:
        loss = loss + section.feature_loss * cosine_loss(embedding=image, target=teacher_embedding)
    return loss if share == 1.0 else share * loss
