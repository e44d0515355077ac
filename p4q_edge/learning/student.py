"""The head that is learned, and the teacher that another head, or none, makes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.models import Adapter, PromptLearner
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import LearnSection


class Student(nn.Module):
    """What is learned: prompts or constant class embeddings, an adapter or none, residuals of classes or none.

    Attributes:
        prompts: None keeps the hand-written class embeddings.
        adapter: None keeps the quantized features.
        class_residual: added to the class embeddings, `(classes, dim)`, zero at first; None adds nothing.
        hand_written: class embeddings of the templates, `(classes, dim)` normalized.
        anchor: from the embeddings of the first context to the hand-written ones, `(classes, dim)`; None leaves the
            context's as they are.

    Source: TaskRes, Yu et al., arXiv:2211.10277, for the residual; its factor is left to the learning rate.
    """

    hand_written: Tensor
    anchor: Tensor | None

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
        self.register_buffer("anchor", None, persistent=False)

    @torch.no_grad()
    def anchor_to_templates(self) -> None:
        """Make the class embeddings those of the templates where the context is as it was at first.

        With hand-written embeddings h and the context's g(c) they are `normalize(h + g(c) - g(c_0))` from here on.
        """
        if self.prompts is not None:
            self.anchor = self.hand_written - self.prompts.at_first()

    def prompts_alone(self) -> "Student":
        """Return the same prompts in front of the plain features, without what else is learned."""
        alone = Student(
            prompts=self.prompts, adapter=None, hand_written=self.hand_written, logit_scale=self.logit_scale
        )
        alone.anchor = self.anchor
        return alone

    def text_embedding(self) -> Tensor:
        """Return class embeddings `(classes, dim)`, normalized."""
        embedding: Tensor = self.hand_written if self.prompts is None else self.prompts()
        if self.anchor is not None:
            embedding = F.normalize(embedding + self.anchor, dim=-1)
        return embedding if self.class_residual is None else F.normalize(embedding + self.class_residual, dim=-1)

    def image_embedding(self, features: Tensor) -> Tensor:
        """Adapted image embeddings `(N, dim)`, normalized."""
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
    """Return a student before its first step, on the device of the class embeddings."""
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
class Teacher:
    """Names images by their full-precision features, for a student to follow; nothing of it is learned any more.

    Attributes:
        text: class embeddings, `(classes, dim)` normalized.
        adapter: on the features, or None.
        logit_scale: of the model.
    """

    text: Tensor
    adapter: Adapter | None
    logit_scale: float

    @classmethod
    def zero_shot(cls, student: Student) -> "Teacher":
        """Return the hand-written class embeddings that a student starts from."""
        return cls(text=student.hand_written, adapter=None, logit_scale=student.logit_scale)

    @classmethod
    @torch.no_grad()
    def of(cls, head: Student) -> "Teacher":
        """Return a head that was learned on full-precision features."""
        return cls(text=head.text_embedding(), adapter=head.adapter, logit_scale=head.logit_scale)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Return logits `(N, classes)` of features of the float encoder, `(N, dim)`."""
        adapted = features if self.adapter is None else self.adapter(features)
        return self.logit_scale * F.normalize(adapted, dim=-1) @ self.text.T
