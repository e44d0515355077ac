"""Stage `validate`: the float and the fake-quantized PyTorch model beside the bundle's graph and the engine.

The comparison itself is `p4q_edge.runtime.evaluation.comparison`, which a device has as well.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from p4q_edge.data import read_split_again
from p4q_edge.evaluation.captioned import captioned_model, open_captions, read_captioned
from p4q_edge.evaluation.preflight import Checked, check_before_learning, data_of, left_to_test, not_its_origin
from p4q_edge.evaluation.report.html import make_thumbnails, render_html, require_libraries, shown_images
from p4q_edge.models import FoldedClassifier, require_device, run_folded
from p4q_edge.quant import Phase
from p4q_edge.recipe import on_device, read_recipe, run_recipe_of, to_toml
from p4q_edge.runtime.artifacts import SUFFIX, Bundle
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError
from p4q_edge.runtime.evaluation import (
    GateResult,
    Outcome,
    Reference,
    Renderer,
    Subject,
    ValidateRequest,
    bundle_graph,
    found_names,
    learned_digests,
)
from p4q_edge.runtime.evaluation.report import Baseline, DebugReport, LearningPoint
from p4q_edge.runtime.evaluation.trials import check_trials
from p4q_edge.runtime.images import ToDecode, require_decodable
from p4q_edge.runtime.stage import FAKE_QUANT, FLOAT, OUTPUT_NAMES, Outputs, Stage
from p4q_edge.runtime.storage import one_line, sha256_bytes
from p4q_edge.stages import RunFiles, Source, learn_stage, open_source, prepare, read_curve, restore_classifier

logger = logging.getLogger(__name__)

RUN = ".run"
"""What stands for the suffix of an engine, or of its bundle, in the name of the run folder beside it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchReference:
    """What a run folder gives: the folded classifier, and what it was learned from.

    Attributes:
        checked: the images of the validation, where they were decoded before the reference was learned.
    """

    source: Source
    classifier: FoldedClassifier
    folder: Path
    checked: Checked | None = None


def torch_stage(classifier: FoldedClassifier, phase: Phase, *, as_cpu_graph: bool = False) -> Stage:
    """Return a stage of the chain that runs the folded classifier in one phase; see `run_folded`."""

    def run(batch: NDArray[np.uint8]) -> Outputs:
        images = torch.from_numpy(np.ascontiguousarray(batch))
        found = run_folded(classifier, images, phase=phase, as_cpu_graph=as_cpu_graph)
        return dict(zip(OUTPUT_NAMES, (values.numpy() for values in found), strict=True))

    return run


def open_torch_reference(request: ValidateRequest, subject: Subject) -> TorchReference | None:
    """Restore what is in the run folder that an engine came from, or run its stages; None if there is none.

    A finished run is compared as it lies there, also where this version would make it otherwise. Before anything is
    learned, all images of the validation are decoded once.

    Raises:
        UsageError: `--reference` names something else, or images cannot be used: every problem in one list.
        IncompatibleEngineError: the run is of another model or of other classes.
    """
    named = request.reference
    if named is not None and not named.is_dir() and named.suffix not in (".toml", SUFFIX):
        raise UsageError(f"--reference {named}: expected a bundle (.p4q), a recipe (.toml) or a run folder")
    folder = _run_folder(request.engine, named)
    recipe = read_recipe(named) if named is not None and named.suffix == ".toml" else None
    if recipe is None and not (folder / "recipe.toml").is_file() and folder != named:
        return None
    files = RunFiles(folder=folder)
    opened = recipe or run_recipe_of(folder)
    opened = opened if request.device == "auto" else on_device(opened, request.device)
    if opened.compute.device.startswith("cuda"):
        require_device(opened.compute.device)  # a device that is not here is told of before anything is read
    origin = named or folder
    checked = None if recipe is None else check_before_learning(request, subject, opened, origin)
    source = open_source(opened, read_split_again(opened.data, seed=opened.seed) if checked is None else checked.split)
    card = subject.card
    if source.class_names != card.class_names or source.model.info.weights_sha256 != card.model.weights_sha256:
        raise not_its_origin(request, origin)
    classifier = restore_classifier(source, files) if recipe is None else None
    if classifier is None:
        checked = checked or check_before_learning(request, subject, opened, origin)
        classifier = learn_stage(prepare(source, files), files).classifier
        checked.keep_decoded()
    return TorchReference(source=source, classifier=classifier, folder=folder, checked=checked)


def _run_folder(engine: Path, named: Path | None) -> Path:
    """Return the run folder that is named, or that beside the engine, or else that beside the bundle that is named."""
    if named is not None and named.is_dir():
        return named
    beside = engine.with_suffix(RUN)
    if named is not None and named.suffix == SUFFIX and not beside.is_dir():
        return named.with_suffix(RUN)
    return beside


def reference_of(request: ValidateRequest, subject: Subject, found: TorchReference | None) -> Reference:
    """Return the PyTorch stages and the images for a validation."""
    card, learned_from, known = subject.card, learned_digests(subject.bundle), found_names(subject.bundle)
    images = None
    if found is None:
        if request.data is not None:
            images = data_of(request.data, card, learned_from, known)
        missing = f"PyTorch itself: no run folder {_run_folder(request.engine, request.reference)}"
        return Reference(images=images, not_checked=(f"{missing}; name one, or a recipe, with --reference",))
    source, checked = found.source, found.checked
    learned_from |= frozenset(source.train_digests)
    if checked is not None:
        images = checked.images
    elif request.data is not None:
        images = data_of(request.data, card, learned_from, known or source.split.train.found_names)
    else:
        images = left_to_test(source.split, card, source.recipe, learned_from)
    return Reference(
        stages={
            FLOAT: torch_stage(found.classifier, Phase.FLOAT),
            FAKE_QUANT: torch_stage(found.classifier, Phase.QUANTIZED, as_cpu_graph=card.as_cpu_graph),
        },
        images=images,
        baselines=read_baselines(found.folder),
        learning=tuple(
            LearningPoint(epoch=point.epoch, loss=point.loss, held_out_top1=point.held_out_top1)
            for point in read_curve(RunFiles(folder=found.folder))
        ),
        digests={
            "recipe": sha256_bytes(to_toml(source.recipe.anywhere()).encode()),
            "images learned from": sha256_bytes("\n".join(source.train_digests).encode()),
        },
        seeds={"recipe": source.recipe.seed},
        of_no_class=None if checked is None else checked.of_no_class,
        files=compare_linears(subject.bundle, found.classifier),
    )


def compare_linears(bundle: Bundle | None, classifier: FoldedClassifier) -> tuple[GateResult, ...]:
    """Return whether the bundle's graph holds the integers and scales of the module; nothing without a bundle."""
    if bundle is None:
        return ()
    # Imported here: it needs onnx, and the parser of this command should not.
    import onnx

    from p4q_edge.graph import linear_quantizations
    from p4q_edge.graph.analysis import differing_linears

    graph = onnx.load_model_from_string(bundle.model("fp32"))
    differing = differing_linears(graph, linear_quantizations(classifier))
    if differing:
        logger.warning("the bundle's graph holds other integers or scales than PyTorch in %s", ", ".join(differing))
    name = "linears of the bundle's graph that differ from the PyTorch model"
    return (GateResult(name=name, passed=not differing, value=len(differing), limit=0, unit="linears"),)


def read_baselines(folder: Path) -> tuple[Baseline, ...]:
    """Return the comparison of methods that a run folder holds, if it holds one.

    Raises:
        CorruptArtifactError: the file is not a list of rows.
    """
    path = RunFiles(folder=folder).baselines
    if not path.is_file():
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Baseline, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptArtifactError(
            f"{path} is not a comparison of methods: {one_line(error)}. Remove it; the demo writes it again."
        ) from error


def page(outcome: Outcome) -> bytes:
    """Return the report as HTML with thumbnails of mistakes and of images that changed their answer."""
    chain, images = outcome.report.chain, outcome.images
    thumbnails = {}
    if chain is not None and images is not None:
        thumbnails = make_thumbnails(images.pixels, shown_images(chain, outcome.report.unknown))
    return render_html(outcome.report, thumbnails=thumbnails).encode()


def html_renderer() -> Renderer:
    """Return what writes a report as a page.

    Raises:
        EnvironmentNotAbleError: a library that draws it is missing.
    """
    require_libraries()
    return page


def reference_for(request: ValidateRequest, subject: Subject) -> Reference:
    """Return everything that PyTorch can add to a validation: the toolkit's half of `p4q-edge validate`."""
    found = open_torch_reference(request, subject)
    reference = reference_of(request, subject, found)
    if request.pairs is not None:
        reference = _with_captions(request, request.pairs, subject, found, reference)
    return replace(reference, debug=_debug(request, subject, found, reference)) if request.debug else reference


def _with_captions(
    request: ValidateRequest, table: Path, subject: Subject, found: TorchReference | None, reference: Reference
) -> Reference:
    """Add images with captions; where none of the validation's was decoded yet, all are, before a text is read."""
    model = captioned_model(request, None if found is None else found.source)
    captions = None if found is None or found.checked is None else found.checked.captions
    if captions is None or captions.spec != model.preprocess:
        captions = open_captions(request, table, model.preprocess)
        others = [ToDecode.of_pixels(captions.pixels, source=f"--pairs {table}")]
        if found is not None and found.checked is not None:
            require_decodable(*others)
        else:
            spec, learned = subject.card.preprocess, learned_digests(subject.bundle)
            of_no_class = check_trials(request, reference.images, spec=spec, learned=learned, others=others)
            reference = replace(reference, decoded=True, of_no_class=of_no_class)
    return replace(reference, captioned=read_captioned(captions, model, table))


def _debug(
    request: ValidateRequest, subject: Subject, found: TorchReference | None, reference: Reference
) -> DebugReport:
    # Imported here: it needs onnx, and a validation without --debug should not.
    from p4q_edge.evaluation.layer_debug import MAX_IMAGES, find_difference
    from p4q_edge.evaluation.save_repro import save_engine_repro, save_plan_repro

    card, bundle = subject.card, subject.bundle
    golden = card.golden_samples().image
    images = golden if reference.images is None else reference.images.pixels[slice(0, MAX_IMAGES)]
    if not card.on_cpu and bundle is not None:
        from p4q_edge.evaluation.layer_debug_tensorrt import compare_with_onnxruntime

        half = bundle.model("fp16")
        save = None if request.save_repro is None else save_plan_repro(request.save_repro, half)
        return compare_with_onnxruntime(half, images, on_difference=save)
    graph = None if bundle is None else bundle_graph(card, bundle)
    # In the graph with quantized convolutions layers are arranged otherwise than PyTorch's.
    module = found.classifier if found is not None and card.as_cpu_graph else None
    report = find_difference(subject.engine, card, images, graph=graph, module=module)
    if request.save_repro is not None:
        save_engine_repro(request.save_repro, subject.engine, report, graph=graph, images=images[:MAX_IMAGES])
    return report
