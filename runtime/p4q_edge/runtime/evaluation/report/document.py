"""What a report says, as frozen records; `schema_version` rises with any change of meaning."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import Precision
from p4q_edge.runtime.benchmark import SpeedRow
from p4q_edge.runtime.errors import CorruptArtifactError, InputError
from p4q_edge.runtime.evaluation.comparison import ChainReport
from p4q_edge.runtime.evaluation.gates import GateResult
from p4q_edge.runtime.evaluation.request import ValidateRequest
from p4q_edge.runtime.evaluation.trials import ClassGain, CorruptionRow, ModalityReport, RetrievalReport, UnknownReport
from p4q_edge.runtime.statistics import Estimate, wilson_interval
from p4q_edge.runtime.storage import MAX_JSON_BYTES, MAX_JSON_DEPTH, decode_json, json_depth, open_regular, read_bounded

SCHEMA_VERSION = 2
KIND = "p4q-edge report"
MAX_REPORT_BYTES = MAX_JSON_BYTES


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One row of the comparison of methods.

    Attributes:
        name: what was run, for example `P4Q W8A8`.
        top1_per_seed: share of test images, one figure a seed.
        n: test images of each seed.
        low, high: Wilson interval of the mean over n images.
        std: standard deviation over seeds (n - 1); None with one seed.
        precision: `FP32`, `W8A8 executed`, `W4A8 carried`, ...
    """

    name: str
    top1_per_seed: tuple[float, ...]
    mean: float
    std: float | None
    n: int
    low: float
    high: float
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built, read from the card and the engine.

    Attributes:
        precision: what is quantized, and how.
        int8_share: share of the matrix products in INT8, read from the engine: of operations in TensorRT, without
            attentions; of calls in ONNX Runtime, with the products of attentions; None: not read.
        kernels: TensorRT's layer kinds, or ONNX Runtime's kernels, and how often each occurs.
    """

    engine: str
    backend: str
    size_bytes: int
    model: str
    license: str
    precision: Precision
    int8_share: float | None = None
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerFinding:
    """One linear in the comparison of two stages.

    Attributes:
        error_in, error_out: relative error (L2 over L2) of its input and its output.
    """

    layer: str
    error_in: float
    error_out: float


@dataclass(frozen=True, kw_only=True)
class DebugReport:
    """Where engine and reference diverge.

    Attributes:
        reference: what the engine was compared with.
        n: images compared.
        same_arithmetic: both ran the same operators in the same order, so that any difference is a fault.
        first: the first linear whose output is off; None if none is.
        operator: the node at which the difference starts.
        layers: all linears in the order of the graph.
        keep_float: linears to keep in FP16, worst first.
    """

    reference: str
    n: int
    tolerance: float
    first: str | None
    operator: str | None
    layers: tuple[LayerFinding, ...]
    keep_float: tuple[str, ...]
    same_arithmetic: bool = False


@dataclass(frozen=True, kw_only=True)
class LearningPoint:
    """One epoch of learning.

    Attributes:
        loss: mean over the images.
        held_out_top1: share of right answers on labelled images that a head learned beside it has not seen.
    """

    epoch: int
    loss: float
    held_out_top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to repeat the run.

    Attributes:
        request: what was asked for, paths as they were given; None in reports of older versions.
        command: the same as arguments of `p4q-edge`.
        digests: SHA-256 of everything that went in: engine, bundle, weights, onnx, images, labels, ...
        seeds: of the recipe and the bootstrap.
        versions: libraries, Python, platform.
        git_commit: of the checkout that ran, with `+changes` if it had any; empty outside of one.
        created: UTC time, ISO 8601.
    """

    command: tuple[str, ...]
    digests: dict[str, str]
    seeds: dict[str, int]
    versions: dict[str, str]
    machine: dict[str, str]
    git_commit: str
    created: str
    request: ValidateRequest | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report.

    Attributes:
        schema_version: 2; files of schema 1 are read.
        passed: whether every gate holds.
        data: where the images came from, in words.
        files: whether the files are what they were made from.
        chain: the stages on these images; None without images.
        golden: the stages on the golden samples of the bundle.
        zero_shot: top-1 of the full-precision model with hand-written prompts, on those of these images for which the
            bundle has it; None without any.
        class_gains: the same by class, beside the engine; what learning cost most first.
        unknown: indices of the labelled images whose best class stays below the engine's threshold.
        prompts: the first hand-written prompt of each class, as the bundle keeps them.
        learning: the learning curve of the run folder, where one was logged.
        modality: how far images and class embeddings lie apart; None without labelled images or class embeddings.
        ood: images that show none of the classes, beside these; None where none were named.
        corruptions: these images made worse; empty where that was not asked for.
        retrieval: images by captions and captions by images; None where none were named.
        not_checked: what this run did not look at, and why.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str = KIND
    title: str
    passed: bool
    data: str
    built: Built
    files: tuple[GateResult, ...] = ()
    chain: ChainReport | None
    golden: ChainReport | None = None
    zero_shot: Estimate | None = None
    class_gains: tuple[ClassGain, ...] = ()
    unknown: tuple[int, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    learning: tuple[LearningPoint, ...] = ()
    speed: tuple[SpeedRow, ...] = ()
    modality: ModalityReport | None = None
    ood: UnknownReport | None = None
    corruptions: tuple[CorruptionRow, ...] = ()
    retrieval: RetrievalReport | None = None
    debug: DebugReport | None = None
    prompts: dict[str, str] = msgspec.field(default_factory=dict)
    not_checked: tuple[str, ...] = ()
    provenance: Provenance

    def __repr__(self) -> str:
        # Not every number: there is one for each image.
        top1 = "no labelled images" if self.chain is None else _in_short(self.chain)
        return f"<Report {self.title}: {'passed' if self.passed else 'FAILED'}, {top1}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        # Imported here: it needs this record.
        from p4q_edge.runtime.evaluation.report import shown_report

        return shown_report(self)


def _in_short(chain: ChainReport) -> str:
    last = chain.stages[-1]
    return f"top-1 of {last.name} {100 * last.top1.value:.1f} %, n = {chain.n}"


def baseline(name: str, top1_per_seed: Sequence[float], *, n: int, precision: str = "") -> Baseline:
    """Return a row of the comparison of methods.

    Args:
        name: what was run.
        top1_per_seed: share of n test images, at least one seed.
        n: test images of each seed.
        precision: bit widths in words.
    """
    values = np.asarray(top1_per_seed, dtype=np.float64)
    if values.size == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError(f"expected at least one share in [0, 1], got {top1_per_seed}")
    mean = float(values.mean())
    low, high = wilson_interval(round(mean * n), n)
    return Baseline(
        name=name,
        top1_per_seed=tuple(float(v) for v in values),
        mean=mean,
        std=float(values.std(ddof=1)) if values.size > 1 else None,
        n=n,
        low=min(low, mean),
        high=max(high, mean),
        precision=precision,
    )


def encode(report: Report) -> bytes:
    """Return the report as indented JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted", enc_hook=str), indent=1) + b"\n"


def _decode_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def _of_current_schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a report of schema 1 in schema 2, which keeps the precision of what was built together."""
    built = values.get("built")
    if values.get("schema_version") != 1 or not isinstance(built, dict):
        return values
    precision = {name: built[name] for name in Precision.__struct_fields__ if name in built}
    kept = {name: value for name, value in built.items() if name not in precision}
    return {**values, "schema_version": SCHEMA_VERSION, "built": {**kept, "precision": precision}}


def decode(data: bytes, *, source: str) -> Report:
    """Return a report from JSON.

    Raises:
        CorruptArtifactError: not a report of this schema.
    """
    if json_depth(data) > MAX_JSON_DEPTH:
        raise CorruptArtifactError(f"{source} nests JSON more than {MAX_JSON_DEPTH} deep, which no report does.")
    try:
        values = msgspec.json.decode(data, type=dict[str, Any])
        report = msgspec.convert(_of_current_schema(values), Report, dec_hook=_decode_path)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptArtifactError(
            f"{source} is not a report that this version reads: {error}. Write it again: p4q-edge validate ENGINE"
        ) from error
    if report.kind != KIND or report.schema_version != SCHEMA_VERSION:
        raise CorruptArtifactError(
            f"{source} is {report.kind!r} of schema {report.schema_version}; expected {KIND!r} of schema "
            f"{SCHEMA_VERSION}. Write it again: p4q-edge validate ENGINE"
        )
    return report


def read_report(path: Path) -> Report:
    """Return the report in a JSON file.

    Raises:
        InputError: the file is missing.
        CorruptArtifactError: not a report.
    """
    if not path.exists():
        raise InputError(f"cannot read the report {path}: it does not exist. `p4q-edge validate ENGINE` writes one.")
    return decode(read_bounded(path, limit_bytes=MAX_REPORT_BYTES, kind="report"), source=str(path))


def is_report(path: Path) -> bool:
    """Return whether a file is a report in one of our formats, which a new validation of the engine may replace."""
    try:
        with open_regular(path) as stream:
            head = stream.read(4096)
    except OSError:
        return False
    if path.suffix == ".json":
        try:
            data = read_bounded(path, limit_bytes=MAX_REPORT_BYTES, kind="report")
            document = decode_json(data, dict, source=str(path))
        except (InputError, CorruptArtifactError):
            return False
        return document.get("kind") == KIND
    return KIND.encode() in head
