"""What `p4q-edge inspect --json` writes."""

from __future__ import annotations

import msgspec

from p4q_edge.runtime.artifacts import (
    Calibration,
    CpuInspection,
    CpuMachine,
    CpuOptions,
    DataIndex,
    GoldenResult,
    Member,
    ModelInfo,
    OpenVINOMachine,
    OpenVINOOptions,
    OptimizedCopy,
    Part,
    PlanInspection,
    PlanMachine,
    Precision,
    RecipeDocument,
    RtxMachine,
    RtxOptions,
    TensorRTOptions,
)
from p4q_edge.runtime.choices import BackendName, GraphKind
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.statistics import NoiseFloor


class BundleDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says about itself.

    Attributes:
        size_bytes: of the file.
        sha256: of the file.
        created_by: program and version.
        class_names: in the order of the logits.
        image_size: height and width of the input.
        members: size and digest of each member.
        versions: libraries that exported it.
        recipe: the resolved recipe.
        parity: how near the graphs came to the fake-quantized model, by `GRAPH.MEASURE`.
        unsound: why no engine can be built from a graph: `fp16` is for TensorRT, `fp32` for CPUs.
        narrowest_bits: of the narrowest quantized input.
        preprocess: how pictures become the input.
        golden_samples: how many there are.
    """

    kind: str = "bundle"
    path: str
    size_bytes: int
    sha256: str
    created_by: str
    model: ModelInfo
    precision: Precision
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    embedding_dim: int
    members: dict[str, Member]
    versions: dict[str, str]
    seed: int
    recipe: RecipeDocument
    data_index: DataIndex
    parity: dict[str, float]
    narrowest_bits: int | None
    unsound: dict[GraphKind, str]
    preprocess: PreprocessSpec
    golden_samples: int


class BuiltGolden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Comparison with the golden samples when the engine was built; left out where it is not recorded."""

    golden: GoldenResult | msgspec.UnsetType = msgspec.UNSET


class EngineDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card of an engine says.

    Attributes:
        bundle_sha256: of the bundle that it was built from.
        parts: members of the bundle whose bytes are the engine.
        built_by: program and version.
        class_names: in the order of the logits.
        preprocess: how pictures become the input.
        logit_scale: factor between cosines and logits.
        calibration: from logits to probabilities.
        rounding_bits: of the narrowest quantized value, which the gates follow.
        noise: what roundings do in this model, measured at export.
        golden_samples: how many there are.
    """

    kind: str = "engine"
    path: str
    backend: BackendName
    engine_sha256: str
    engine_size_bytes: int
    bundle_sha256: str
    parts: tuple[Part, ...]
    built_by: str
    model: ModelInfo
    precision: Precision
    class_names: tuple[str, ...]
    preprocess: PreprocessSpec
    embedding_dim: int
    logit_scale: float
    calibration: Calibration
    rounding_bits: int
    noise: NoiseFloor | None
    measured: BuiltGolden
    golden_samples: int


class CpuEngineDocument(EngineDocument, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card of an engine for ONNX Runtime says: the fields of `EngineDocument` and these.

    Attributes:
        built_with: version and processor.
        optimized: the copy that loads faster, or null.
        inspection: kernels and counts read from the engine.
    """

    built_with: CpuMachine
    options: CpuOptions
    optimized: OptimizedCopy | None
    inspection: CpuInspection


class OpenVINODocument(EngineDocument, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card of an engine for OpenVINO says: the fields of `EngineDocument` and these.

    Attributes:
        built_with: version and processor.
        optimized: the compiled model that loads faster, or null.
        inspection: operators and counts read from the engine.
    """

    built_with: OpenVINOMachine
    options: OpenVINOOptions
    optimized: OptimizedCopy | None
    inspection: CpuInspection


class PlanDocument(EngineDocument, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card of a TensorRT engine says: the fields of `EngineDocument` and these.

    Attributes:
        built_with: versions, GPU and how it was built.
        optimized: always null.
        inspection: layers read from the engine, and what was measured.
    """

    built_with: PlanMachine
    options: TensorRTOptions
    optimized: None = None
    inspection: PlanInspection


class RtxDocument(EngineDocument, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the card of an engine of TensorRT for RTX says: the fields of `EngineDocument` and these.

    Attributes:
        built_with: version, GPUs and how it was built.
        optimized: always null.
        inspection: layers read from the engine.
    """

    built_with: RtxMachine
    options: RtxOptions
    optimized: None = None
    inspection: PlanInspection


class HeadDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a head says.

    Attributes:
        class_names: in the order of the logits.
        logit_scale: factor between cosines and logits.
        adapter: whether it has one.
        calibration: from logits to probabilities.
        weights_sha256: of the checkpoint that it fits.
    """

    kind: str = "head"
    path: str
    class_names: tuple[str, ...]
    embedding_dim: int
    logit_scale: float
    adapter: bool
    calibration: Calibration
    weights_sha256: str


class LintRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule that a graph breaks, and where; `node` is empty for the whole model."""

    graph: str
    rule: str
    node: str
    message: str


class LintDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules of TensorRT and ONNX Runtime that graphs break."""

    kind: str = "lint"
    path: str
    findings: tuple[LintRow, ...]
