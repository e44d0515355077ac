"""Teach a head from photographs on the device: encode them, learn class rows, and say how sure the head may be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import Calibration, Head
from p4q_edge.runtime.classification.few_shot import LearnedRows, LearningProblem, learn_rows
from p4q_edge.runtime.classification.predictions import Failure
from p4q_edge.runtime.classification.preparation import PreparedImage
from p4q_edge.runtime.classification.score_calibration import MIN_SAMPLES, Fit, FitOptions, fit
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import ImageLike, expand, same_form
from p4q_edge.runtime.storage import sha256_bytes
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 5

PreparedBatches = Callable[[Sequence[ImageLike]], Iterable[Sequence[PreparedImage | Failure]]]
"""From images to prepared ones, some at a time, with what is wrong with others."""
EncoderRun = Callable[[np.ndarray], np.ndarray]
"""From pixels (n, 3, H, W) uint8 to features (n, dim) float32."""


class TeachReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a head was taught from, and what is known of it.

    Attributes:
        photographs: number of different ones by class.
        known: classes that the base head knows by name; these start at its text embeddings.
        added: classes that are new beside all of the base head; empty where a head of its own was taught.
        mixing: how far the start was moved towards the photographs.
        pull: how strongly the rows were held near their start.
        folds: parts of the photographs that were held out in turn to choose these; 0: nothing could be.
        held_out: number of photographs that were held out.
        held_out_accuracy: share of right answers on these, each by rows learned without it; None if there are none.
        base_accuracy: share of right answers of the base head among these classes; None where it knows not all.
        repeated: photographs that were there before in the same class, and were left out.
        calibration: of the scores, fitted on the photographs that were held out; None where they are too few or
            the calibration of the base head is kept.
    """

    photographs: dict[str, int]
    known: tuple[str, ...]
    added: tuple[str, ...]
    mixing: float
    pull: float
    folds: int
    held_out: int
    held_out_accuracy: float | None
    base_accuracy: float | None
    repeated: int
    calibration: Fit | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Taught:
    """A head, and what is known of it."""

    head: Head
    report: TeachReport


@dataclass(frozen=True, kw_only=True, eq=False)
class Photographs:
    """Features of photographs; n of all classes.

    Attributes:
        class_names: in label order.
        features: (n, dim) float32.
        labels: (n,) int64.
        repeated: photographs that were left out as the same ones were there.
    """

    class_names: tuple[str, ...]
    features: np.ndarray
    labels: np.ndarray
    repeated: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of photographs by class."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, map(int, counts), strict=True))


def listed_photographs(
    photographs: Mapping[str, object], *, base: Head, add: bool, base_name: str
) -> dict[str, list[ImageLike]]:
    """Return the images of each class, after everything was checked that can be before one is decoded.

    Args:
        photographs: images by class, in every form that a classifier takes.
        base: the head to start from.
        add: keep the classes of the base head, and add those that it does not have.
        base_name: of the base head, in words.

    Raises:
        InputError: names that clash, a class without photographs or with too few, or not enough classes.
    """
    _refuse_clashes(photographs)
    known = {same_form(name) for name in base.class_names}
    new = [name for name in photographs if same_form(name) not in known]
    if add and not new:
        raise InputError(
            f"every class of the photographs ({', '.join(photographs)}) is one of {base_name} already, so there is "
            "none to add. Leave out --add (add=True) to learn them anew."
        )
    if not add and len(photographs) < 2:
        raise InputError(
            f"a head needs two classes or more to tell apart, got {', '.join(photographs) or 'none'}. Give photographs "
            "of another class, or add the one to a head: --add CLASS (add=True)."
        )
    listed = {name: list(expand(images)) for name, images in photographs.items()}
    for name, images in listed.items():
        least = 2 if name in new else 1
        if len(images) < least:
            raise InputError(
                f"class {name!r} has {number_of(len(images), 'photograph')}; expected at least {least}"
                + (f", as {base_name} does not know it by name" if least > 1 else "")
                + ". Take some more: 4 to 16, from several angles, work well."
            )
    return listed


def encode_photographs(
    listed: Mapping[str, Sequence[ImageLike]], *, batches: PreparedBatches, run: EncoderRun
) -> Photographs:
    """Run the photographs of each class through the engine; the same one twice in a class is taken once.

    Raises:
        InputError: photographs that cannot be read, all of them named; or one that is in two classes.
    """
    names, collected = tuple(listed), _Collected(class_names=tuple(listed))
    rows: list[np.ndarray] = []
    for label, name in enumerate(names):
        for batch in batches(listed[name]):
            pixels = collected.take(batch, label)
            # With a failure there is no head to be had; the others are still looked for, to name them all at once.
            if pixels and not collected.failures:
                rows.append(run(np.stack(pixels)))
    if collected.failures:
        raise InputError(_unreadable(collected.failures))
    return Photographs(
        class_names=names,
        features=np.concatenate(rows),
        labels=np.asarray(collected.labels, np.int64),
        repeated=collected.repeated,
    )


@dataclass(kw_only=True)
class _Collected:
    """What was met so far among the photographs."""

    class_names: tuple[str, ...]
    labels: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    repeated: int = 0
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def take(self, batch: Sequence[PreparedImage | Failure], label: int) -> list[np.ndarray]:
        """Return the pixels of what is new in a batch, and count the rest."""
        taken = []
        for item in batch:
            if isinstance(item, Failure):
                self.failures.append(item)
                continue
            source, pixels = item[0] or "an image", item[1]
            digest = sha256_bytes(pixels.tobytes())
            if digest in self.seen:
                other, first = self.seen[digest]
                if other != label:
                    raise InputError(
                        f"{source} of class {self.class_names[label]!r} is the same picture as {first} of class "
                        f"{self.class_names[other]!r}. Remove it from one of them."
                    )
                self.repeated += 1
                continue
            self.seen[digest] = (label, source)
            self.labels.append(label)
            taken.append(pixels)
        return taken


def teach_head(photographs: Photographs, *, base: Head, unknown: np.ndarray | None = None) -> Taught:
    """Learn a head of its own from the features of photographs.

    Args:
        photographs: of each class.
        base: gives the text embeddings of classes that it knows by name, with its adapter and scale.
        unknown: (m, dim) features of images that show none of the classes; they decide the threshold.
    """
    require_enough(photographs, base=base)
    rows_of = {same_form(name): row for name, row in zip(base.class_names, base.text_embedding, strict=True)}
    found = [rows_of.get(same_form(name)) for name in photographs.class_names]
    known = np.array([row is not None for row in found])
    # The adapter belongs to the text embeddings that were learned with it.
    start = replace(base, adapter=base.adapter if known.any() else None)
    text = np.stack([np.zeros(base.embedding_dim) if row is None else row for row in found]).astype(np.float64)
    problem = LearningProblem(
        embedding=start.apply(photographs.features)[1].astype(np.float64),
        labels=photographs.labels,
        text=text,
        known=known,
        scale=base.logit_scale,
    )
    learned = learn_rows(problem)
    head = replace(
        start,
        class_names=photographs.class_names,
        text_embedding=learned.rows.astype(np.float32),
        logit_bias=0.0,
        calibration=Calibration(),
    )
    fitted = _calibrated(learned, problem, head, unknown)
    head = head if fitted is None else replace(head, calibration=fitted.calibration)
    base_accuracy = None
    if known.all():
        base_accuracy = float(((problem.embedding @ text.T).argmax(axis=1) == problem.labels).mean())
    names = tuple(name for name, is_known in zip(photographs.class_names, known, strict=True) if is_known)
    report = _report(photographs, learned, problem, known=names, added=())
    return Taught(head=head, report=msgspec.structs.replace(report, base_accuracy=base_accuracy, calibration=fitted))


def add_classes(photographs: Photographs, *, base: Head, golden: np.ndarray) -> Taught:
    """Add the classes that a head does not have; its rows, scale and calibration stay.

    Args:
        photographs: of the new classes, and of those of the base head that shall be held off.
        base: the head to extend.
        golden: (m, dim) features of images that the model was made for; what the base head says of them shall stay.
    """
    require_enough(photographs, base=base)
    place = {same_form(name): index for index, name in enumerate(base.class_names)}
    new = tuple(name for name in photographs.class_names if same_form(name) not in place)
    place.update({same_form(name): len(base.class_names) + index for index, name in enumerate(new)})
    to_class = np.array([place[same_form(name)] for name in photographs.class_names])
    embedding, (golden_logits, golden_embedding) = base.apply(photographs.features)[1], base.apply(golden)
    # What the golden samples show, the head says itself: an added class shall not take them away.
    labels = np.concatenate([to_class[photographs.labels], golden_logits.argmax(axis=1)])
    frozen = base.text_embedding.astype(np.float64)
    problem = LearningProblem(
        embedding=np.concatenate([embedding, golden_embedding]).astype(np.float64),
        labels=labels,
        text=np.concatenate([frozen, np.zeros((len(new), base.embedding_dim))]),
        known=np.arange(len(frozen) + len(new)) < len(frozen),
        frozen=len(frozen),
        scale=base.logit_scale,
    )
    learned = learn_rows(problem)
    head = replace(
        base,
        class_names=(*base.class_names, *new),
        text_embedding=np.concatenate([base.text_embedding, learned.rows[len(frozen) :].astype(np.float32)]),
    )
    known = tuple(name for name in photographs.class_names if name not in new)
    return Taught(
        head=head,
        report=_report(photographs, learned, problem, known=known, added=new),
    )


def require_enough(photographs: Photographs, *, base: Head) -> None:
    """Raise `InputError` where, without the repeated ones, a class that the base does not know has one photograph."""
    known = {same_form(name) for name in base.class_names}
    for name, count in photographs.counts.items():
        if count < 2 and same_form(name) not in known:
            raise InputError(
                f"class {name!r} has one photograph only, several times; expected at least 2 different ones. Take more."
            )


def _calibrated(learned: LearnedRows, problem: LearningProblem, head: Head, unknown: np.ndarray | None) -> Fit | None:
    """Return the calibration that fits answers to photographs that were held out; None where they are too few."""
    labels = problem.labels[learned.held_out]
    if len(labels) < MIN_SAMPLES:
        logger.warning(
            "%s could be held out, fewer than %d: scores are not calibrated, and no answer is unknown. "
            "Give more of each class",
            number_of(len(labels), "photograph"),
            MIN_SAMPLES,
        )
        return None
    strangers = None if unknown is None else head.apply(unknown)[0]
    return fit(learned.logits, labels, head=head, unknown=strangers, options=FitOptions())


def _report(
    photographs: Photographs,
    learned: LearnedRows,
    problem: LearningProblem,
    *,
    known: tuple[str, ...],
    added: tuple[str, ...],
) -> TeachReport:
    own = learned.held_out < len(photographs.labels)  # without the golden samples
    right = learned.logits[own].argmax(axis=1) == problem.labels[learned.held_out[own]]
    return TeachReport(
        photographs=photographs.counts,
        known=known,
        added=added,
        mixing=learned.choice.mixing,
        pull=learned.choice.pull,
        folds=learned.folds,
        held_out=len(right),
        held_out_accuracy=float(right.mean()) if len(right) else None,
        base_accuracy=None,
        repeated=photographs.repeated,
        calibration=None,
    )


def _refuse_clashes(photographs: Mapping[str, object]) -> None:
    seen: dict[str, str] = {}
    for name in photographs:
        if not name.strip():
            raise InputError(f"{name!r} is no name of a class. Name it by words.")
        other = seen.setdefault(same_form(name).strip().casefold(), name)
        if other != name:
            raise InputError(f"the class names {other!r} and {name!r} are one name. Put their photographs together.")


def _unreadable(failures: Sequence[Failure]) -> str:
    reasons = [str(failure.error).removesuffix(".") for failure in failures[:_SHOWN_FAILURES]]
    more = f"; and {len(failures) - _SHOWN_FAILURES} more" if len(failures) > _SHOWN_FAILURES else ""
    return (
        f"{number_of(len(failures), 'photograph')} cannot be read: {'; '.join(reasons)}{more}. Repair or remove "
        f"{one_or_many(len(failures), 'it', 'them')}."
    )
