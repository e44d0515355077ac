"""The learning curve of a run, with the accuracy on a share of the photographs that is held out for it."""

import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from p4q_edge.data import folds
from p4q_edge.learning import CurvePoint, LearningRun, decode_curve, encode_curve, write_curve
from p4q_edge.quant import Phase
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import atomic_write, one_line
from p4q_edge.runtime.wording import number_of
from p4q_edge.stages.cross_validation import right_answers
from p4q_edge.stages.pipeline import Learned, Prepared
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.students import new_student, teach

logger = logging.getLogger(__name__)


def log_learning(learned: Learned, files: RunFiles, folder: Path) -> tuple[Path, Path]:
    """Write the curve of a run as CSV and as TensorBoard's events, and keep it in the run folder for the report.

    Nothing that is learned changes: the accuracy is that of a head learned beside it, by the same schedule, from all
    labelled photographs but a part, on that part.
    """
    shares = held_out_top1(learned.prepared, epochs=len(learned.curve))
    points = list(learned.curve)
    if shares:
        each = zip(points, shares, strict=True)
        points = [msgspec.structs.replace(point, held_out_top1=share) for point, share in each]
    atomic_write(files.curve, encode_curve(points).encode(), force=True)
    paths = write_curve(folder, points)
    logger.info("learning curve of %s: %s and %s", number_of(len(points), "epoch"), *paths)
    return paths


def held_out_top1(prepared: Prepared, *, epochs: int) -> list[float]:
    """Return the share of right held-out answers after each epoch; empty where there are too few photographs."""
    source, features = prepared.source, prepared.features
    part = folds(features.labels, seed=source.recipe.seed)[0]
    everything = torch.arange(len(features.labels), device=part.device)
    if not epochs or not len(part) or len(part) == len(everything):
        return []
    rows, labels = features.student[0, part], features.labels[part]
    student, _ = new_student(source)
    shares: list[float] = []
    others = features.of_images(everything[~torch.isin(everything, part)])
    section = source.recipe.learn
    before = section.prompt_passes(len(everything))
    steps = before * section.steps_of(len(others.labels))  # as many epochs, though the images are fewer
    section = msgspec.structs.replace(section, epochs=epochs - before, prompt_steps=steps)

    def judge(epoch: int, loss: float) -> None:
        shares.append(right_answers(student, rows, labels, phase=Phase.QUANTIZED) / len(part))

    recipe = msgspec.structs.replace(source.recipe, learn=section)
    teach(replace(source, recipe=recipe), student, others, LearningRun(progress=judge))
    return shares


def read_curve(files: RunFiles) -> tuple[CurvePoint, ...]:
    """Return the curve that a run folder holds; empty where none was asked for.

    Raises:
        CorruptArtifactError: the file is not a curve.
    """
    if not files.curve.is_file():
        return ()
    try:
        return decode_curve(files.curve.read_text("utf-8"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(
            f"{files.curve} is not a learning curve: {one_line(error)}. Remove it; `p4q-edge learn --log-dir` writes "
            "it again"
        ) from error
