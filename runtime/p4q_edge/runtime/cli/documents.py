"""What `--json` of the runtime's subcommands writes, beside `schema_version`: one structure for each document.

Imported where one is made: it takes longer than `p4q-edge --help` may. `tools/write_schema_docs.py` writes their page.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from p4q_edge.runtime.artifacts import Calibration, GoldenResult, Precision, RecipeDocument
from p4q_edge.runtime.benchmark import Measured
from p4q_edge.runtime.builders import CpuDryRun, RtxDryRun, TensorRTDryRun
from p4q_edge.runtime.choices import BackendName
from p4q_edge.runtime.classification import Fit, TeachReport
from p4q_edge.runtime.cli.board_report import BoardStep
from p4q_edge.runtime.cli.bulk_documents import ClassifiedDocument, EmbedDocument, SearchDocument
from p4q_edge.runtime.cli.inspect_documents import (
    BundleDocument,
    CpuEngineDocument,
    HeadDocument,
    LintDocument,
    PlanDocument,
    RtxDocument,
)
from p4q_edge.runtime.cli.service_documents import CompletionDocument, PushDocument, ServeDocument
from p4q_edge.runtime.evaluation.report import Report
from p4q_edge.runtime.machine import Finding, PackageLicence


class BuildDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine that was built from a bundle.

    Attributes:
        engine: its path.
        card: path of its card.
        golden: comparison with the golden samples; null for an engine of another machine.
    """

    engine: str
    card: str
    backend: BackendName
    engine_size_bytes: int
    engine_sha256: str
    golden: GoldenResult | None


class SummaryRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the table of a build.

    Attributes:
        top1: share of right answers.
        low, high: its 95 % interval.
        size_bytes: of the weights.
        latency_ms: of one image; null where it was not measured.
    """

    name: str
    top1: float
    low: float
    high: float
    size_bytes: int
    latency_ms: float | None = None


class BuildSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Zero-shot, learned and engine side by side on n images; no rows without any.

    Attributes:
        n: images that were not learned from.
        cross_validated: whether they are the photographs learned from, each named by a head that was not.
        costs: in words, what an engine lacks that no labelled image was seen with; none of any other.
    """

    n: int
    rows: tuple[SummaryRow, ...] = ()
    cross_validated: bool = False
    costs: tuple[str, ...] = ()


class RecipeBuildDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine that was built from a recipe.

    Attributes:
        engine: its path.
        card: path of its card.
        bundle: path of the bundle.
        run: run folder.
    """

    engine: str
    card: str
    bundle: str
    summary: BuildSummary
    run: str
    backend: BackendName
    engine_sha256: str
    engine_size_bytes: int


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A resolved recipe."""

    recipe: RecipeDocument


class ClassScore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class and its calibrated probability."""

    label: str
    score: float


class ImageError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an image cannot be used; `type` is the class of the error."""

    type: str
    message: str


class PathAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to one image; of one that cannot be used there are only `source` and `error`.

    Attributes:
        source: path of the image; null where it has none.
        label: best class.
        score: its calibrated probability.
        known: whether it reaches its threshold.
        accepted: classes of `topk` that reach theirs.
        topk: best classes, best first.
    """

    source: str | None
    label: str | msgspec.UnsetType = msgspec.UNSET
    score: float | msgspec.UnsetType = msgspec.UNSET
    known: bool | msgspec.UnsetType = msgspec.UNSET
    accepted: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    topk: tuple[ClassScore, ...] | msgspec.UnsetType = msgspec.UNSET
    error: ImageError | msgspec.UnsetType = msgspec.UNSET


class ClassifyDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to all images in order."""

    engine: str
    predictions: tuple[PathAnswer, ...]


class SelftestDocument(GoldenResult, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A comparison with the golden samples: the fields of `GoldenResult` and these.

    Attributes:
        engine: its path.
        passed: whether it computes what its reference computes.
    """

    engine: str
    passed: bool


class ValidateDocument(Report, frozen=True, kw_only=True):
    """A `Report`, and the paths of what was written."""

    reports: tuple[str, ...]


class BenchDocument(Measured, frozen=True, kw_only=True):
    """`Measured`, and what was measured where.

    Attributes:
        valid: whether every row counts.
        git_commit: of the checkout; empty outside of one.
        created: UTC time, ISO 8601.
    """

    schema_version: int = 1
    kind: str
    engine: str
    engine_sha256: str
    engine_size_bytes: int
    backend: BackendName
    precision: Precision
    threads: int | None
    valid: bool
    versions: dict[str, str]
    machine: dict[str, str]
    git_commit: str
    created: str


class DoctorDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this machine can run; `backends` says for each whether it can run."""

    findings: tuple[Finding, ...]
    backends: dict[str, bool]


class LicencesDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is under which licence.

    Attributes:
        model: name of the model in the bundle; null where none was named.
        weights_licence: of its weights, as their source states it.
        weights_sha256: their digest.
        learned_from: number of images that the bundle was learned from, each of which its manifest names.
        exported_with: packages that exported the bundle, and their versions.
        packages: installed here, with their versions and licences.
    """

    model: str | None
    weights_licence: str | None
    weights_sha256: str | None
    learned_from: int | None
    exported_with: dict[str, str]
    packages: tuple[PackageLicence, ...]


class BoardReportDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An archive that was written, and what was run for it."""

    archive: str
    steps: tuple[BoardStep, ...]


class NamedClasses(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head and its classes; `earlier_versions` counts those that `head undo` can go back."""

    name: str
    class_names: tuple[str, ...]
    earlier_versions: int


class HeadListDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The heads of an engine; the first is built in."""

    engine: str
    heads: tuple[NamedClasses, ...]


class HeadFileDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head that was added to an engine or removed from it; `path` is its file."""

    engine: str
    name: str
    path: str


class HeadCalibrateDocument(Fit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was fitted: the fields of `Fit` and these.

    Attributes:
        head: its name.
        applied: whether it was written; only with `--apply`, and only what is better.
    """

    engine: str
    head: str
    applied: bool


class HeadResetDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The calibration that a head had, and the one that it has now."""

    engine: str
    head: str
    before: Calibration
    calibration: Calibration


class HeadUndoDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head whose earlier version was put back.

    Attributes:
        engine: its path.
        name: of the head.
        class_names: of the version that is back.
        earlier_versions: number of versions that are left.
    """

    engine: str
    name: str
    class_names: tuple[str, ...]
    earlier_versions: int


class TeachDocument(TeachReport, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head that was taught: the fields of `TeachReport` and these.

    Attributes:
        engine: its path.
        name: of the head.
        path: where it is kept.
        class_names: in the order of the logits.
        earlier_versions: number of versions that `head undo` can go back.
        seen_before: photographs that the engine was learned from, by which shares and calibration are too good.
    """

    engine: str
    name: str
    path: str
    class_names: tuple[str, ...]
    earlier_versions: int
    seen_before: int


class HeadExportDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A head that was written to a file of its own."""

    output: str
    class_names: tuple[str, ...]


class TritonDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model repository that was written.

    Attributes:
        repository: its folder.
        models: names of the models that clients ask, one for each head.
    """

    repository: str
    models: tuple[str, ...]


class SignatureDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An artifact that is signed.

    Attributes:
        kind: `bundle`, `engine` or `head`.
        signature: path of the signature.
        sha256: digest that is signed: of a bundle's manifest, an engine's card, or a head.
        public_key: raw Ed25519 key, base64.
    """

    path: str
    kind: str
    signature: str
    sha256: str
    public_key: str


DOCUMENTS: Mapping[str, type[msgspec.Struct]] = {
    "build MODEL.p4q": BuildDocument,
    "build --recipe": RecipeBuildDocument,
    "build --print-config": ConfigDocument,
    "build --dry-run, ONNX Runtime": CpuDryRun,
    "build --dry-run, TensorRT": TensorRTDryRun,
    "build --dry-run, TensorRT for RTX": RtxDryRun,
    "classify": ClassifyDocument,
    "classify --stream, each line": PathAnswer,
    "classify --output": ClassifiedDocument,
    "embed": EmbedDocument,
    "search": SearchDocument,
    "inspect MODEL.p4q": BundleDocument,
    "inspect ENGINE, ONNX Runtime": CpuEngineDocument,
    "inspect ENGINE, TensorRT": PlanDocument,
    "inspect ENGINE, TensorRT for RTX": RtxDocument,
    "inspect HEAD": HeadDocument,
    "inspect --lint": LintDocument,
    "selftest": SelftestDocument,
    "sign": SignatureDocument,
    "verify": SignatureDocument,
    "validate": ValidateDocument,
    "bench": BenchDocument,
    "serve": ServeDocument,
    "push": PushDocument,
    "completion": CompletionDocument,
    "export-triton": TritonDocument,
    "doctor": DoctorDocument,
    "doctor --licenses": LicencesDocument,
    "doctor --board-report": BoardReportDocument,
    "head list": HeadListDocument,
    "head add": HeadFileDocument,
    "head calibrate": HeadCalibrateDocument,
    "head undo": HeadUndoDocument,
    "teach": TeachDocument,
    "head remove": HeadFileDocument,
    "head reset": HeadResetDocument,
    "head export": HeadExportDocument,
}
"""By command line; a command with several documents has several lines."""
