"""The engine that is validated, with all that belongs to it: card, bundle, the bundle's graph, golden samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from p4q_edge.runtime.artifacts import NOISE_OF_PROFILE, Bundle, Card, NoiseKind, on_backend, read_bundle, read_card
from p4q_edge.runtime.choices import CONVOLUTION_PROFILES, SEVEN_BIT_PROFILES, GraphKind
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.engines.onnxruntime import (
    differing_tensors,
    float_weights,
    import_onnxruntime,
    integer_convolutions,
    seven_bit_weights,
    without_overflow,
)
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError
from p4q_edge.runtime.evaluation.comparison import ChainOptions, ChainReport, validate_chain
from p4q_edge.runtime.evaluation.gates import GateResult, Gates, Grid
from p4q_edge.runtime.evaluation.recorded_stages import Recorded
from p4q_edge.runtime.evaluation.report.document import Built
from p4q_edge.runtime.evaluation.request import ValidateRequest
from p4q_edge.runtime.images import LabelledImages
from p4q_edge.runtime.stage import ENGINE, FAKE_QUANT, FLOAT, ONNX, OUTPUT_NAMES, STAGE_ORDER, Outputs, Stage
from p4q_edge.runtime.statistics import FULL_BITS, NoiseFloor, with_remainder
from p4q_edge.runtime.storage import quoted, sha256_file
from p4q_edge.runtime.wording import number_of

BUNDLE_SUFFIX = ".p4q"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The engine under test with all that belongs to it.

    Attributes:
        stages: `engine`, and `onnx` where the bundle is here.
        gates: the limits of its bit width and of what its bundle records.
        files: whether the engine's file is what its bundle gives.
        not_checked: what could not be opened or compared, and why.
    """

    engine: Path
    card: Card
    bundle: Bundle | None
    stages: Mapping[str, Stage]
    gates: Gates
    files: tuple[GateResult, ...]
    not_checked: tuple[str, ...]
    close: Callable[[], None]


def open_subject(request: ValidateRequest) -> Subject:
    """Load the engine, its card, its bundle and the bundle's graph.

    Raises:
        IncompatibleEngineError: the bundle is not the one the engine was built from.
    """
    card = on_backend(read_card(request.engine), request.backend)
    engine = load_engine(request.engine, card, device=request.device, threads=request.threads)
    stages: dict[str, Stage] = {ENGINE: lambda batch: engine.run(batch, OUTPUT_NAMES)}
    bundle = find_bundle(request.engine, card, named=request.reference)
    grid = _grid(card)
    grids: dict[str, Grid] = {ENGINE: grid}
    files: tuple[GateResult, ...] = ()
    not_checked = []
    if bundle is None:
        not_checked.append(f"the ONNX graph: no bundle beside {request.engine} is its own; name it with --reference")
    else:
        graph: bytes | None = None
        try:
            graph = bundle_graph(card, bundle)
            if card.on_cpu:
                files = (compare_file(request.engine, card, graph),)
            if grid == "seven_bit":
                graph, grids[ONNX] = seven_bits(card, graph), grid
        except EnvironmentNotAbleError:
            both = "" if graph is not None else ", and the ONNX graph"  # which is made of two of the bundle
            not_checked.append(f"the engine's file against the bundle{both}: the package onnx is not installed")
        try:
            if graph is not None:
                stages[ONNX] = graph_stage(graph, threads=request.threads)
        except EnvironmentNotAbleError:
            not_checked.append("the ONNX graph: ONNX Runtime is not installed")
        # On another grid than the reference's there is no such limit in any case.
        if card.precision.remainder == "bf16" and card.noise_bf16 is None and grid == "reference":
            not_checked.append(
                "the median loss of the engine: its bundle does not record what a bf16 remainder costs; export it again"
            )
    return Subject(
        engine=request.engine,
        card=card,
        bundle=bundle,
        stages=stages,
        gates=Gates(
            max_top1_drop=request.max_top1_drop,
            bits=card.rounding_bits,
            noise=_noise(card, bundle, grids),
            grids=grids,
            expected_loss=_expected_loss(card, bundle),
        ),
        files=files,
        not_checked=tuple(not_checked),
        close=engine.close,
    )


def _grid(card: Card) -> Grid:
    """Return the grid that an engine computes on, as its card states it."""
    if card.precision.activation_bits > FULL_BITS and card.precision.weight_block is None:
        return "none"
    return "seven_bit" if card.cpu_profile in SEVEN_BIT_PROFILES else "reference"


def graph_of(card: Card, bundle: Bundle) -> GraphKind:
    """Return which graph of a bundle is compared with an engine.

    That with FP32 remainder, whose numbers differ least from PyTorch's; but where convolutions compute in float on CPUs
    only the other graph is quantized as a TensorRT engine.
    """
    return "fp16" if not card.as_cpu_graph and bundle.golden().on_cpu else "fp32"


def bundle_graph(card: Card, bundle: Bundle) -> bytes:
    """Return the graph of a bundle that is compared with an engine; for a CPU its remainder is FP32.

    Raises:
        EnvironmentNotAbleError: convolutions are quantized on a CPU, and the package onnx is not installed.
    """
    if card.cpu_profile in CONVOLUTION_PROFILES:
        return integer_convolutions(bundle.model("fp16"), bundle.model("fp32"))
    return bundle.model(graph_of(card, bundle))


def seven_bits(card: Card, graph: bytes) -> bytes:
    """Return `bundle_graph` as the profile of an engine narrows its weights."""
    return without_overflow(graph) if card.cpu_profile in CONVOLUTION_PROFILES else seven_bit_weights(graph)


def _expected_loss(card: Card, bundle: Bundle | None) -> dict[str, float]:
    """Return the loss of cosine that the exporter measured between the fake-quantized model and each graph."""
    if bundle is None:
        return {}
    parity = bundle.manifest.parity
    built_from: GraphKind = "fp32" if card.as_cpu_graph else "fp16"
    kinds = {ONNX: graph_of(card, bundle), ENGINE: built_from}
    expected = {stage: parity.median_loss[kind] for stage, kind in kinds.items() if kind in parity.median_loss}
    if card.precision.remainder == "bf16":
        # No graph of the bundle rounds as this engine does.
        expected.pop(ENGINE, None)
        if card.noise_bf16 is not None:
            expected[ENGINE] = card.noise_bf16.median_loss
    return expected


def _noise(card: Card, bundle: Bundle | None, grids: Mapping[str, Grid]) -> dict[str, NoiseFloor]:
    """Return what roundings do in this model, for each stage of which the bundle or the card records it."""
    found = {ENGINE: card.noise_with_remainder}
    if bundle is not None:
        noise = bundle.manifest.parity.noise
        profile = card.cpu_profile
        own = profile in CONVOLUTION_PROFILES or grids.get(ONNX) == "seven_bit"
        of_graph: NoiseKind = NOISE_OF_PROFILE[profile] if own and profile is not None else graph_of(card, bundle)
        found[ONNX] = noise.get(of_graph)
        if grids[ENGINE] == "none":
            found[ENGINE] = with_remainder(noise.get("fp32" if card.on_cpu else "fp16"), card.noise_bf16)
    return {stage: floor for stage, floor in found.items() if floor is not None}


def compare_file(engine: Path, card: Card, graph: bytes) -> GateResult:
    """Return whether an ONNX Runtime engine is what its profile makes of the bundle's graph.

    Numbers cannot tell everything: in a deep model one grid of twice the step changes less than roundings do.

    Raises:
        EnvironmentNotAbleError: the profile changes the graph, and the package onnx is not installed.
    """
    profile, data = card.cpu_profile, engine.read_bytes()
    if profile == "exact":
        unit, value = "bytes", differing_bytes(data, graph)
    else:
        made = seven_bits(card, graph) if profile in SEVEN_BIT_PROFILES else graph
        made = float_weights(graph) if profile == "float" else made
        unit, value = "tensors", differing_tensors(data, made)
    name = f"{unit} of the engine that differ from the bundle's graph"
    return GateResult(name=name, passed=value == 0, value=value, limit=0, unit=unit)


def differing_bytes(first: bytes, second: bytes) -> int:
    """Return at how many places two files differ; what one has beyond the other counts."""
    common = min(len(first), len(second))
    a, b = (np.frombuffer(data[:common], np.uint8) for data in (first, second))
    return int(np.count_nonzero(a != b)) + abs(len(first) - len(second))


def graph_stage(model: bytes, *, threads: int | None = None) -> Stage:
    """Return the graph as its operators define it: no fusion, so no integer kernel and no saturation."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> Outputs:
        return dict(zip(OUTPUT_NAMES, session.run(OUTPUT_NAMES, {"image": batch}), strict=True))

    return run


def golden_chain(subject: Subject, options: ChainOptions) -> ChainReport:
    """Run the golden samples: the recorded PyTorch stages against the graph and the engine here."""
    # The card of an engine that kept FP16 has that engine's own results in the place of the reference's.
    golden = subject.card.golden_samples() if subject.bundle is None else subject.bundle.golden()
    if subject.card.as_cpu_graph:
        golden = golden.for_cpu()
    recorded = {
        FLOAT: Recorded({"logits": golden.float_logits, "embedding": golden.float_embedding}),
        FAKE_QUANT: Recorded({"logits": golden.logits, "embedding": golden.embedding}),
    }
    labels = golden.float_logits.argmax(axis=1)  # nobody's, so that a share of them is no accuracy
    gates = replace(options.gates, max_top1_drop=None)
    quiet = replace(options, label="golden samples", measure="named as in full precision", gates=gates)
    stages = in_order({**recorded, **subject.stages})
    return validate_chain(stages, golden.image, labels, subject.card.class_names, options=quiet)


def in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages in the order of the chain."""
    return {name: stages[name] for name in STAGE_ORDER if name in stages}


def recorded_zero_shot(subject: Subject, images: LabelledImages) -> dict[int, int]:
    """Return what hand-written prompts answer in full precision, by the index of each image that the bundle knows."""
    found = None if subject.bundle is None else subject.bundle.reference()
    if found is None or subject.bundle is None:
        return {}
    answers = subject.bundle.manifest.data_index.zero_shot
    if len(answers) != len(found):
        return {}
    rows, _ = found.match(images.pixels, range(len(images.labels)))
    return {index: answers[row] for index, row in rows.items()}


def built_of(subject: Subject) -> Built:
    """Return what the card says was built."""
    card = subject.card
    return Built(
        engine=str(subject.engine),
        backend=card.backend,
        size_bytes=card.engine_size_bytes,
        model=f"{card.model.name} {card.model.pretrained}".strip(),
        license=card.model.license,
        precision=card.precision,
        int8_share=card.build.inspection.int8_share,
        kernels=card.build.inspection.counts,
    )


def find_bundle(engine: Path, card: Card, *, named: Path | None = None) -> Bundle | None:
    """Return the bundle that an engine was built from; None if it is neither named nor beside the engine.

    Beside the engine, and beside a run folder that is named, it may have any name: the digest in the card tells which
    it is.

    Raises:
        IncompatibleEngineError: the engine was built from another bundle than the one named, or than that of its name.
    """
    given = named is not None and named.suffix == BUNDLE_SUFFIX
    own = named if given and named else engine.with_suffix(BUNDLE_SUFFIX)
    if own.is_file() or given:
        bundle = read_bundle(own)
        if bundle.sha256() == card.bundle_sha256:
            return bundle
    if not given:
        folders = [engine.absolute().parent]
        if named is not None and named.is_dir():
            folders.append(named.absolute().parent)
        for path in (path for folder in dict.fromkeys(folders) for path in sorted(folder.glob(f"*{BUNDLE_SUFFIX}"))):
            if path.is_file() and path != own.absolute() and sha256_file(path) == card.bundle_sha256:
                return read_bundle(path)
        if not own.is_file():
            return None
    raise IncompatibleEngineError(
        f"{engine} was not built from {own}: the card names another bundle "
        f"({card.bundle_sha256[:12]}...). Build it again: p4q-edge build {quoted(own)} --engine "
        f"{quoted(engine)} --force"
    )


def nothing_to_compare_with(subject: Subject) -> str:
    """Return what to say where `--max-top1-drop` finds no labelled images, or no full-precision model."""
    found = None if subject.bundle is None else subject.bundle.reference()
    here = "" if found is None else f", some of the {number_of(len(found), 'image')} that the bundle has results for"
    return (
        f"--max-top1-drop compares with the full-precision model on labelled images, and one of them is missing; "
        f"add --data{here}, or with the toolkit --reference with a recipe or a run folder"
    )
