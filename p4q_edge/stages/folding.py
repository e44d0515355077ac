"""What was learned, put back into a student, and folded with the image tower into one module."""

from torch import Tensor

from p4q_edge.calibration import CalibratedEncoder
from p4q_edge.learning import Student
from p4q_edge.models import FoldedClassifier, LoadedModel


def restore_student(student: Student, stored: dict[str, Tensor]) -> None:
    """Put stored weights and scales into a student and end its learning."""
    student.load_state_dict({name: value for name, value in stored.items() if name != "text_embedding"})
    student.requires_grad_(False)
    if student.adapter is not None:
        student.adapter.set_dynamic(False)


def fold(
    model: LoadedModel, calibrated: CalibratedEncoder, student: Student, text_embedding: Tensor
) -> FoldedClassifier:
    """Stage `fold`: encoder, adapter and constant class embeddings as one module."""
    return FoldedClassifier(
        calibrated.encoder,
        student.adapter,
        text_embedding.to(model.compute.device),
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        preprocess=model.preprocess,
    )
