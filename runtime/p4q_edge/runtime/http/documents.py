"""What the server answers, as JSON; `openapi` describes these structures."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is answered; fields that are not set are left out."""


class Problem(Answer, frozen=True, kw_only=True):
    """What is wrong; `type` is the class of the error."""

    type: str
    message: str


class Refusal(Answer, frozen=True, kw_only=True):
    """The answer to a request that failed as a whole."""

    error: Problem


class LabelScore(Answer, frozen=True, kw_only=True):
    """A class with its calibrated probability, and the least that is accepted."""

    label: str
    score: float
    threshold: float


class ImageAnswer(Answer, frozen=True, kw_only=True):
    """The answer to one image; of one that cannot be used there is only `error`.

    Attributes:
        label: best class.
        score: its calibrated probability.
        known: whether it reaches its threshold; if not, the image may show none of the classes.
        topk: best classes, best first.
        error: why the image cannot be used.
    """

    label: str | msgspec.UnsetType = msgspec.UNSET
    score: float | msgspec.UnsetType = msgspec.UNSET
    known: bool | msgspec.UnsetType = msgspec.UNSET
    topk: tuple[LabelScore, ...] | msgspec.UnsetType = msgspec.UNSET
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class ClassifyAnswer(Answer, frozen=True, kw_only=True):
    """Answers to the images of a request, in order."""

    head: str
    predictions: tuple[ImageAnswer, ...]


class ImageEmbedding(Answer, frozen=True, kw_only=True):
    """The L2-normalized embedding of one image, or why there is none."""

    embedding: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    error: Problem | msgspec.UnsetType = msgspec.UNSET


class EmbedAnswer(Answer, frozen=True, kw_only=True):
    """Embeddings of the images of a request, in order."""

    head: str
    dim: int
    embeddings: tuple[ImageEmbedding, ...]


class HeadInfo(Answer, frozen=True, kw_only=True):
    """A class set.

    Attributes:
        name: of the head.
        class_names: its classes.
        threshold: least score of an accepted answer, where `class_thresholds` has none for the class.
        class_thresholds: the same by class.
        saved: whether it is stored with the engine, and so there after a restart.
    """

    name: str
    class_names: tuple[str, ...]
    threshold: float
    class_thresholds: dict[str, float]
    saved: bool


class HeadsAnswer(Answer, frozen=True, kw_only=True):
    """The class sets of the engine, and which answers where a request names none.

    Attributes:
        active: name of that head.
        read_only: whether nothing can be taught, chosen or saved here.
        heads: all of them, the built-in one first.
    """

    active: str
    read_only: bool
    heads: tuple[HeadInfo, ...]


class Choice(Answer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which head shall answer where a request names none."""

    name: str


class TeachAnswer(Answer, frozen=True, kw_only=True):
    """What was learned.

    Attributes:
        head: the new head; it is not saved yet.
        photographs: number of different ones by class.
        held_out: number of photographs that were held out to test on.
        held_out_accuracy: share of right answers on these; null if there are none.
        repeated: photographs that were there twice, and were taken once.
    """

    head: HeadInfo
    photographs: dict[str, int]
    held_out: int
    held_out_accuracy: float | None
    repeated: int


class SavedAnswer(Answer, frozen=True, kw_only=True):
    """Where a head was saved; an earlier one of its name is kept for `p4q-edge head undo`.

    Attributes:
        name: of the head.
        file: name of its file in the folder of the engine's heads.
        earlier_versions: how many are kept.
    """

    name: str
    file: str
    earlier_versions: int


class Health(Answer, frozen=True, kw_only=True):
    """That the server answers."""

    status: str
    engine: str
    version: str
