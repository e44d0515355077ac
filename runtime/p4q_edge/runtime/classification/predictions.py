"""What a classifier answers."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Protocol

import numpy as np

from p4q_edge.runtime.artifacts import Calibration, Card
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.wording import number_of


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The classes of one image, best first.

    Attributes:
        label: the best class.
        score: its calibrated probability, 0 to 1.
        index: its position in the head's class names.
        known: whether its score reaches the threshold; if not, the image may show none of the classes.
        topk: (label, score) of the best classes, `label` first.
        accepted: those of `topk` that reach their own threshold; the answer of a multi-label (sigmoid) head.
        source: path of the image, if it was given as one.
    """

    label: str
    score: float
    index: int
    known: bool
    topk: tuple[tuple[str, float], ...]
    accepted: tuple[str, ...] = ()
    source: str | None = None

    def to_dict(self) -> list[dict[str, str | float]]:
        """Return `[{"label": ..., "score": ...}, ...]`, the shape of other image-classification pipelines."""
        return [{"label": label, "score": score} for label, score in self.topk]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the best classes with bars."""
        rows = "".join(
            f"<tr><td>{escape(label)}</td><td>{score:.1%}</td><td><div style='width:{score:.1%};min-width:1px;"
            f"height:.7em;background:{'#0c6b5d' if label in self.accepted else '#8a9a94'}'></div></td></tr>"
            for label, score in self.topk
        )
        unknown = "" if self.known else "unknown; nearest: "
        source = "" if self.source is None else f" <small>{escape(self.source)}</small>"
        return (
            f"<p><b>{unknown}{escape(self.label)}</b>{source}</p>"
            f"<table><colgroup><col><col><col style='width:12em'></colgroup>{rows}</table>"
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be used, in place of its prediction.

    Attributes:
        error: what is wrong with it; the message names it and says what to do.
        source: path of the image, if it was given as one.
    """

    error: InputError
    source: str | None = None


def probabilities(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return calibrated probabilities (n, classes) float64 of logits (n, classes)."""
    scaled = logits.astype(np.float64) / calibration.temperature
    if calibration.activation == "sigmoid":
        # Written with the negative absolute value, so that exp cannot overflow.
        small = np.exp(-np.abs(scaled))
        return np.asarray(np.where(scaled >= 0, 1.0 / (1.0 + small), small / (1.0 + small)))
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How probabilities become predictions.

    Attributes:
        class_names: name of each column.
        calibration: holds the thresholds.
        threshold: replaces all fitted thresholds if it is not None.
        top_k: number of classes in an answer.
    """

    class_names: tuple[str, ...]
    calibration: Calibration
    threshold: float | None
    top_k: int

    def predict(self, scores: np.ndarray, *, source: str | None) -> Prediction:
        """Return the prediction of one image from its probabilities (classes,)."""
        best = np.argsort(-scores, kind="stable")[: self.top_k]
        topk = tuple((self.class_names[index], float(scores[index])) for index in best)
        accepted = tuple(label for label, score in topk if score >= self.threshold_of(label))
        label, score = topk[0]
        return Prediction(
            label=label,
            score=score,
            index=int(best[0]),
            known=label in accepted,
            topk=topk,
            accepted=accepted,
            source=source,
        )

    def threshold_of(self, label: str) -> float:
        """Return the least score with which a class is accepted."""
        if self.threshold is not None:
            return self.threshold
        return self.calibration.class_thresholds.get(label, self.calibration.threshold)


class Described(Protocol):
    """What of a classifier its description tells."""

    @property
    def card(self) -> Card:
        """Of the engine."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads."""

    @property
    def active_head(self) -> str:
        """Name of the head that classifies."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the active head."""


_SHOWN_CLASSES = 8


class Shown:
    """A classifier that tells what it is, at the prompt and in notebooks."""

    def __repr__(self: Described) -> str:
        return (
            f"<ZeroShotClassifier {self.card.model.name} on {self.card.backend}, head {self.active_head!r} of "
            f"{len(self.heads)}, {number_of(len(self.class_names), 'class')}: {_shortened(self.class_names)}>"
        )

    def _repr_html_(self: Described) -> str:
        card = self.card
        height, width = card.preprocess.size
        rows = {
            "model": f"{card.model.name} ({card.model.license or 'licence unknown'})",
            "runs on": card.backend,
            "input": f"{height} x {width} pixels",
            "heads": ", ".join(name + (" (active)" if name == self.active_head else "") for name in self.heads),
            number_of(len(self.class_names), "class"): _shortened(self.class_names),
        }
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table><caption>ZeroShotClassifier</caption>{cells}</table>"


def _shortened(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return ", ".join(names[:_SHOWN_CLASSES]) + more
