"""The classifier that a run folder holds, as it was made: for comparison, whatever changed since.

The rule for "unchanged" decides what a build makes again. A comparison asks another question, whether an engine is what
it was built from, and other code, versions or thread counts must not move that target.
"""

import logging

from p4q_edge.learning import read_tensors
from p4q_edge.models import FoldedClassifier
from p4q_edge.stages.encoder_file import restore_encoder
from p4q_edge.stages.folding import fold, restore_student
from p4q_edge.stages.pipeline import CALIBRATED_KEY
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source
from p4q_edge.stages.students import new_student

logger = logging.getLogger(__name__)


def restore_classifier(source: Source, files: RunFiles) -> FoldedClassifier | None:
    """Return the classifier of a finished run; None where there is none that this version can restore.

    Args:
        source: what the run's own recipe names, opened.
        files: of the run; nothing is written to them.

    Raises:
        CorruptArtifactError: a file of the run is damaged.
    """
    learned = read_tensors(files.learned)
    if learned is None:
        return None
    tensors, metadata = learned
    key = metadata.get(CALIBRATED_KEY, "")
    scheme = source.recipe.quantization.scheme()
    try:
        calibrated = restore_encoder(files.encoder, source.model, scheme, key=key)
        if calibrated is None:  # calibrated again after the learning
            return None
        student, _ = new_student(source)
        restore_student(student, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        logger.warning("%s holds a run that this version cannot restore (%s); it is run again", files.folder, reason)
        return None
    return fold(source.model, calibrated, student, tensors["text_embedding"])
