"""What the frozen image towers say about the images that are learned from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The features of one step.

    Attributes:
        student: of the quantized encoder, `(N, dim)`.
        teacher: of the float encoder, `(N, dim)`.
        labels: of the first images, `(n,)` int64; the others have none.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """The features of images without labels, of which only a teacher can tell anything.

    Attributes:
        student: features of the quantized encoder, `(images, dim)`.
        teacher: features of the float encoder, `(images, dim)`.
    """

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """What the frozen image towers say about the images.

    Attributes:
        student: features of the quantized encoder, `(views, images, dim)`.
        teacher: features of the float encoder, `(views, images, dim)`; those of length 1 serve all but a learned
            teacher.
        labels: `(images,)` int64.
        unlabelled: further images without labels, or None.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    unlabelled: Unlabelled | None = None

    def of_images(self, chosen: Tensor) -> "CachedFeatures":
        """Return the same of some of the labelled images, by their indices `(n,)` int64, and all without labels."""
        return replace(
            self, student=self.student[:, chosen], teacher=self.teacher[:, chosen], labels=self.labels[chosen]
        )

    def first_views(self, count: int) -> "CachedFeatures":
        """Return the same of the first views of each image."""
        return replace(self, student=self.student[:count], teacher=self.teacher[:count])

    def in_full_precision(self) -> "CachedFeatures":
        """Return what a head on the float encoder learns from: its features as the student's, labelled alone."""
        return CachedFeatures(student=self.teacher, teacher=self.teacher, labels=self.labels)

    def batch(self, view: Tensor, chosen: Tensor, unlabelled: Tensor | None, device: torch.device) -> Batch:
        """Return one view of each of some images on a device.

        Args:
            view: of each image, `(n,)` int64.
            chosen: the images, `(n,)` int64.
            unlabelled: indices of images without labels that come behind them, `(m,)` int64, or None.
            device: where the batch is wanted.
        """
        student, teacher = self.student[view, chosen], self.teacher[view, chosen]
        if self.unlabelled is not None and unlabelled is not None:
            student = torch.cat([student, self.unlabelled.student[unlabelled]])
            teacher = torch.cat([teacher, self.unlabelled.teacher[unlabelled]])
        return Batch(student=student.to(device), teacher=teacher.to(device), labels=self.labels[chosen].to(device))
