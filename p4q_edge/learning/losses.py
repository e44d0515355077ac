"""The losses of P4Q, each with its arguments by name: two of them have one shape."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(*, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of image-to-class similarities, `()`.

    Args:
        logits: `(N, classes)`, scaled similarities.
        labels: `(N,)` int64.

    Source: P4Q, arXiv:2409.17634, contrastive loss; with one text a class it is the CLIP loss over the classes.
    """
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def distillation_loss(*, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`KL(teacher || student)` of the class distributions, `()`, mean over the batch, times temperature squared.

    Zero exactly where the student's distribution is the teacher's.

    Args:
        student_logits: `(N, classes)`, with a gradient.
        teacher_logits: `(N, classes)`; no gradient flows into them.

    Source: P4Q, arXiv:2409.17634, distillation loss; Hinton et al., arXiv:1503.02531, for the temperature.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cosine_loss(*, embedding: Tensor, target: Tensor) -> Tensor:
    """Return one minus the mean cosine of two sets of normalized rows, `()`.

    Used towards the teacher's image embeddings, and towards hand-written class embeddings (KgCoOp,
    arXiv:2303.13283, eq. (5), up to a factor of 2).
    """
    return 1.0 - torch.mean(torch.sum(embedding * target.detach(), dim=-1))
