"""What `--json` of the toolkit's subcommands writes, beside `schema_version`: one structure for each document."""

from collections.abc import Mapping

import msgspec

from p4q_edge.models import ModelRow
from p4q_edge.runtime.evaluation.report import Baseline


class CalibrateDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A calibrated image tower.

    Attributes:
        run: run folder.
        scheme: bit widths that the recipe asks for.
        execution: `executed` or `carried`.
        images: how many it was calibrated with.
        input_scales: of each quantized linear's input.
        kept_float: linears that are not quantized, and what a limit on the loss of accuracy put back into float.
        folded: exact folds that were made.
        quantized_attentions: attentions whose products are quantized.
        quantized_convolutions: convolutions that are quantized.
    """

    run: str
    scheme: str
    execution: str
    images: int
    input_scales: dict[str, float]
    kept_float: tuple[str, ...]
    folded: tuple[str, ...]
    quantized_attentions: tuple[str, ...]
    quantized_convolutions: tuple[str, ...]


class LearnDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was learned.

    Attributes:
        run: run folder.
        learned: `prompts`, `adapter`, `class_residual`, several or none.
        images: how many were learned from.
        classes: how many there are.
    """

    run: str
    learned: tuple[str, ...]
    images: int
    classes: int


class AblateDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A comparison over seeds; `path` is where its rows were written."""

    rows: tuple[Baseline, ...]
    seeds: tuple[int, ...]
    path: str


class ExportDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle that was exported.

    Attributes:
        bundle: its path.
        parity: how near the graphs came to the fake-quantized model, by `GRAPH.MEASURE`.
        execution: `executed` or `carried`.
    """

    bundle: str
    sha256: str
    size_bytes: int
    parity: dict[str, float]
    execution: str


class ComparedFigure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of two runs; they are the same where they lie no further apart than `limit`."""

    name: str
    before: float
    now: float
    limit: float
    same: bool


class ReproduceDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A validation that was run again; `same` where every figure is."""

    report: str
    same: bool
    figures: tuple[ComparedFigure, ...]


class ReportDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page that was written; `passed` where every gate of the report holds."""

    report: str
    passed: bool


class InitDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe that was written for a folder of photographs.

    Attributes:
        recipe: its path.
        train: folder to learn from.
        test: folder to test on, or null.
        classes: number of images of each class.
        unusable: what is wrong with each image that cannot be read.
        advice: what to fix before learning.
    """

    recipe: str
    train: str
    test: str | None
    classes: dict[str, int]
    unusable: tuple[str, ...]
    advice: tuple[str, ...]


class ModelsDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models that open_clip knows."""

    models: tuple[ModelRow, ...]


DOCUMENTS: Mapping[str, type[msgspec.Struct]] = {
    "calibrate": CalibrateDocument,
    "learn": LearnDocument,
    "learn --ablate": AblateDocument,
    "export": ExportDocument,
    "reproduce": ReproduceDocument,
    "report": ReportDocument,
    "init": InitDocument,
    "models": ModelsDocument,
}
"""By command line; a command with several documents has several lines."""
