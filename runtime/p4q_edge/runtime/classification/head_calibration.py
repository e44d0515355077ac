"""Calibrate a head of an engine on labelled images: run the engine, fit, and write what was fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import (
    BUILT_IN,
    Calibration,
    Card,
    EngineHead,
    engine_head,
    find_head,
    on_backend,
    read_card,
    replace_head,
    write_card,
)
from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.classification.score_calibration import Fit, FitOptions, fit, require_calibratable
from p4q_edge.runtime.engines import Engine, load_engine
from p4q_edge.runtime.images import batched, expand, load_image, preprocess, read_class_folders, require_of_no_class
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.verification import ensure_golden

_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to calibrate with which images.

    Attributes:
        engine: the engine, with its card.
        data: folder of labelled images, one folder a class.
        head: name of the head; the built-in one is that of the card.
        unknown: folder of images that show none of the classes, or None.
        learned: SHA-256 of images that the model was learned from; they are left out.
        other_names: other names of the head's classes in the same order, such as the folders learned from.
        backend: another library for CPUs than the one that the engine was built for.
    """

    engine: Path
    data: Path
    head: str = BUILT_IN
    unknown: Path | None = None
    learned: frozenset[str] = frozenset()
    other_names: tuple[str, ...] = ()
    backend: CpuBackend | None = None


def calibrate_head(request: Request, options: FitOptions) -> Fit:
    """Run labelled images through an engine and fit; nothing is written, see `write_calibration`.

    Raises:
        InputError: the images do not fit the classes, or are too few; or some of them are among those of no class.
        ArtifactError: engine, card and head do not fit each other.
        UsageError: the engine is not one that `backend` runs.
        QualityGateError: the engine computes wrong values on this machine.
    """
    card = on_backend(read_card(request.engine), request.backend)
    head = engine_head(request.engine, request.head)
    images = read_class_folders(
        request.data,
        class_names=head.class_names,
        spec=card.preprocess,
        learned=request.learned,
        other_names=request.other_names,
    )
    require_calibratable(images.labels)
    if request.unknown is not None and request.unknown.is_dir():
        require_of_no_class(request.unknown, request.learned.union(images.digests), option="--unknown")
    starts = range(0, len(images.labels), _BATCH)
    engine = load_engine(request.engine, card)
    try:
        ensure_golden(engine, card, name=str(request.engine))
        rows = [
            head.classify(engine, images.pixels[slice(start, start + _BATCH)])[0]
            for start in tracked(starts, "run the engine")
        ]
        unknown = None if request.unknown is None else _unknown_logits(engine, request.unknown, card, head)
    finally:
        engine.close()
    return fit(np.concatenate(rows), images.labels, head=head, unknown=unknown, options=options)


def _unknown_logits(engine: Engine, folder: Path, card: Card, head: EngineHead) -> np.ndarray:
    prepared = (preprocess(load_image(image), card.preprocess) for image in expand(folder))
    return np.concatenate([head.classify(engine, np.stack(batch))[0] for batch in batched(prepared, _BATCH)])


def write_calibration(engine: Path, name: str, calibration: Calibration) -> None:
    """Write a calibration into the card of an engine (the built-in head) or the file of one of its heads.

    Raises:
        UsageError: there is no such head.
    """
    if name == BUILT_IN:
        write_card(engine, msgspec.structs.replace(read_card(engine), calibration=calibration), force=True)
        return
    replace_head(engine, name, replace(find_head(engine, name), calibration=calibration))


def reset_calibration(engine: Path, name: str) -> tuple[Calibration, Calibration]:
    """Give a head the calibration that it was made with: temperature 1, no thresholds. Return that before and after.

    Raises:
        UsageError: there is no such head.
    """
    before = engine_head(engine, name).calibration
    after = Calibration(activation=before.activation)
    write_calibration(engine, name, after)
    return before, after
