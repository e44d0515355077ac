"""What a validation looks at beyond accuracy, each part on demand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.evaluation.comparison import ChainOptions, run_stage
from p4q_edge.runtime.evaluation.request import ValidateRequest
from p4q_edge.runtime.evaluation.trials.corruptions import (
    MAX_IMAGES,
    Compared,
    CorruptionRow,
    corruption_rows,
)
from p4q_edge.runtime.evaluation.trials.modality import ModalityReport, modality_report
from p4q_edge.runtime.evaluation.trials.retrieval import CaptionedImages, RetrievalReport, retrieval_report
from p4q_edge.runtime.evaluation.trials.unknown_images import UnknownReport, unknown_report
from p4q_edge.runtime.images import (
    LabelledImages,
    Pixels,
    PreprocessSpec,
    ToDecode,
    draw_subset,
    image_files,
    read_unlabelled_folder,
    require_decodable,
    require_of_no_class,
    subset,
)
from p4q_edge.runtime.stage import ENGINE, FLOAT, ONNX, Images, Stage
from p4q_edge.runtime.statistics import metrics


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What was found, as far as it was asked for."""

    modality: ModalityReport | None = None
    ood: UnknownReport | None = None
    corruptions: tuple[CorruptionRow, ...] = ()
    retrieval: RetrievalReport | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfNoClass:
    """Images that show none of the classes: slices are uint8 (n, 3, H, W); and the SHA-256 over their files."""

    pixels: Pixels
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """What the trials are run on.

    Attributes:
        card: of the engine.
        stages: that can run any image, in the order of the chain.
        images: labelled; None without any.
        logits: of each stage on these images, (n, classes).
        embeddings: likewise, (n, dim).
        class_rows: embeddings of the classes, (classes, dim); None where the head that is folded in is not known.
        captioned: images with captions; None where none were asked for.
        of_no_class: images of none of the classes, as `check_trials` decoded them; None where none were asked for.
    """

    card: Card
    stages: Mapping[str, Stage]
    images: LabelledImages | None
    logits: Mapping[str, metrics.Floats]
    embeddings: Mapping[str, metrics.Floats]
    class_rows: metrics.Floats | None = None
    captioned: CaptionedImages | None = None
    of_no_class: OfNoClass | None = None


def check_sources(request: ValidateRequest) -> None:
    """Refuse folders and tables that are not there, before any model is loaded.

    Raises:
        UsageError: a folder or a table does not exist.
        InputError: the folder has no images.
    """
    if request.ood is not None:
        if not request.ood.is_dir():
            raise UsageError(f"--ood {request.ood} is not a directory; expected one with images, at any depth")
        if not image_files(request.ood):
            raise InputError(f"--ood {request.ood} has no images; name a folder with some, at any depth")
    if request.pairs is not None and not request.pairs.is_file():
        raise UsageError(
            f"--pairs {request.pairs}: expected an existing .csv or .tsv with the columns path and caption"
        )


def check_trials(
    request: ValidateRequest,
    images: LabelledImages | None,
    *,
    spec: PreprocessSpec,
    learned: frozenset[str] = frozenset(),
    checked: OfNoClass | None = None,
    others: Sequence[ToDecode] = (),
) -> OfNoClass | None:
    """Refuse what cannot be answered, before anything runs; return the images of no class, decoded.

    Args:
        request: what was asked for.
        images: labelled; None without any.
        spec: how the engine wants its pixels.
        learned: SHA-256 of the images that the model was learned from.
        checked: the images of no class, where they were decoded before.
        others: what else is decoded beforehand, under the same bar.

    Raises:
        UsageError: it needs labelled images, and there are none.
        InputError: images of no class are among those of the classes, or some cannot be read.
    """
    found, wanted = checked, [*others]
    if images is None:
        if missing := missing_labelled(request):
            raise UsageError(missing)
    else:
        if request.ood is not None and found is None:
            found = open_of_no_class(request, request.ood, known=learned.union(images.digests), spec=spec)
            wanted.append(ToDecode.of_pixels(found.pixels, source=f"--ood {request.ood}"))
        drawn = draw_subset(len(images.labels), request.limit, seed=request.seed)
        wanted.append(ToDecode.of_pixels(images.pixels, drawn.tolist(), source=images.source))
    require_decodable(*wanted)
    return found


def missing_labelled(request: ValidateRequest) -> str | None:
    """Return what to say of a request without labelled images that compares with some; None of one that does not."""
    if request.ood is None and not request.corruptions:
        return None
    option = "--ood" if request.ood is not None else "--corruptions"
    return f"{option} compares with labelled images, and there are none. Name some with --data."


def open_of_no_class(
    request: ValidateRequest, folder: Path, *, known: Collection[str], spec: PreprocessSpec
) -> OfNoClass:
    """Return the images of none of the classes, of which none is decoded yet.

    Args:
        request: its limit is the most images, its seed draws them.
        folder: with the images.
        known: SHA-256 of images with a class.
        spec: how the engine wants its pixels.

    Raises:
        InputError: there are none, or some are among those of the classes.
    """
    require_of_no_class(folder, known, option="--ood")
    pixels, digest = read_unlabelled_folder(folder, spec=spec, limit=request.limit, seed=request.seed)
    return OfNoClass(pixels=pixels, digest=digest)


def run_trials(request: ValidateRequest, tested: Tested) -> Trials:
    """Run what was asked for, after `check_sources` and `check_trials`; distances of embeddings are always told.

    Raises:
        InputError: images that cannot be used.
    """
    images = tested.images
    digests: dict[str, str] = {}
    modality = None
    if images is not None and tested.class_rows is not None and len(tested.class_rows) > 1:
        modality = modality_report(tested.embeddings, images.labels, tested.class_rows, seed=request.seed)
    unknown = None
    if request.ood is not None and tested.of_no_class is not None:
        digests["images of no class"] = tested.of_no_class.digest
        unknown = _unknown(request, tested.of_no_class.pixels, tested, source=request.ood.name)
    found: tuple[CorruptionRow, ...] = ()
    if request.corruptions and images is not None:
        found = _corruptions(request, tested, images)
    retrieval = None
    if tested.captioned is not None:
        digests["images and captions"] = tested.captioned.digest
        retrieval = _retrieval(request, tested, tested.captioned)
    return Trials(modality=modality, ood=unknown, corruptions=found, retrieval=retrieval, digests=digests)


def compared_stages(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the reference and the engine: the float model where it can run, or else the bundle's graph, or none."""
    reference = next((name for name in (FLOAT, ONNX) if name in stages), None)
    names = [ENGINE] if reference is None else [reference, ENGINE]
    return {name: stages[name] for name in names}


def _logits(request: ValidateRequest, tested: Tested, stage: Stage, images: Images, name: str) -> metrics.Floats:
    options = ChainOptions(batch_size=request.batch_size, seed=request.seed)
    found = run_stage(stage, images, name=name, options=options, classes=len(tested.card.class_names))
    return found["logits"]


def _unknown(request: ValidateRequest, pixels: Images, tested: Tested, *, source: str) -> UnknownReport:
    stages = compared_stages(tested.stages)
    return unknown_report(
        tested.logits,
        {name: _logits(request, tested, stage, pixels, f"{name}, no class") for name, stage in stages.items()},
        class_names=tested.card.class_names,
        calibration=tested.card.calibration,
        source=source,
    )


def _corruptions(request: ValidateRequest, tested: Tested, images: LabelledImages) -> tuple[CorruptionRow, ...]:
    some = subset(images, draw_subset(len(images.labels), MAX_IMAGES, seed=request.seed))

    def answers(stage: Stage, changed: Images, name: str) -> npt.NDArray[np.int64]:
        best: npt.NDArray[np.int64] = metrics.top_k(_logits(request, tested, stage, changed, name), 1)[:, 0]
        return best

    compared = Compared(stages=compared_stages(tested.stages), answers=answers)
    return corruption_rows(compared, some.pixels, some.labels, seed=request.seed)


def _retrieval(request: ValidateRequest, tested: Tested, captioned: CaptionedImages) -> RetrievalReport:
    starts = range(0, len(captioned.pixels), request.batch_size)
    features = {
        name: np.concatenate(
            [stage(captioned.pixels[slice(start, start + request.batch_size)])["features"] for start in starts]
        )
        for name, stage in tested.stages.items()
    }
    return retrieval_report(captioned, features)
