"""Write the bundle: graphs, shared weights, head, golden samples, results of PyTorch and manifest, in one file."""

import copy
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from p4q_edge.calibration import mean_weight_bits
from p4q_edge.data import pixels
from p4q_edge.graph import ExportedGraphs, export_classifier
from p4q_edge.models import CPU, Adapter, FoldedClassifier, device_of, run_folded, to_batch
from p4q_edge.quant import Phase, QuantScheme, count_macs, quant_convs, quant_linears, quant_products
from p4q_edge.recipe import to_document, to_toml, without_folders
from p4q_edge.runtime.artifacts import (
    Bundle,
    DataIndex,
    Golden,
    GraphParity,
    LearnedImage,
    Manifest,
    Precision,
    RecipeDocument,
)
from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts import head as heads
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.stage import OUTPUT_NAMES
from p4q_edge.runtime.storage import (
    LIBRARIES,
    StageCode,
    encode_json,
    is_outdated,
    is_unchanged,
    replaced,
    require_writable,
    stage_key,
)
from p4q_edge.stages.cross_validation import cross_validate
from p4q_edge.stages.pipeline import Learned
from p4q_edge.stages.record_results import (
    loss_without_labels,
    record_reference,
    recorded_images,
    validation_images,
    with_median_losses,
    zero_shot_answers,
)
from p4q_edge.stages.run_files import RunFiles

logger = logging.getLogger(__name__)

NOISE_IMAGES = 24
"""Number of images on which graphs are compared and the noise of roundings is measured."""

BYTES_OF_FLOAT = 4
RECORDED_VERSIONS = ("p4q-edge", "torch", "open_clip_torch", "onnx", "onnxruntime", "numpy", "pillow")
_MODULES = (
    *("pipeline", "encoder_file", "features", "folding", "source", "students"),
    *("export", "record_results", "cross_validation"),
)
EXPORT = StageCode(
    modules=(*(f"p4q_edge.stages.{name}" for name in _MODULES), "p4q_edge.recipe.toml"),
    rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.graph", "p4q_edge.models"),
    libraries=(*LIBRARIES, "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
)


def bundle_key(learned: Learned) -> str:
    """Return the key of the bundle of what was learned."""
    source = learned.prepared.source
    recorded = recorded_images(source)
    held_out = source.split.held_out
    more = [] if held_out is None else held_out.digests()
    images = [recorded.digests(), recorded.labels.tolist(), len(source.split.test), more]
    return stage_key(EXPORT, inputs=[learned.key, images], recipe=to_toml(source.recipe.anywhere()))


def export_unless_current(learned: Learned, path: Path, folder: Path, *, force: bool = False) -> None:
    """Stage `export`, skipped where the bundle was exported from exactly this and not changed since.

    A bundle that this run folder's stage wrote and nobody changed is replaced where its inputs or the code changed.

    Raises:
        UsageError: another bundle is there and `force` is false.
    """
    record, key = RunFiles(folder=folder).bundle_record, bundle_key(learned)
    if is_unchanged(record, key, [path]) and not force:
        logger.info("export: unchanged, %s", path)
        return
    force = force or is_outdated(record, [path])
    require_writable(path, force=force)
    with replaced(record, key, [path]):
        export_bundle(learned, path, force=force)


def export_bundle(learned: Learned, path: Path, *, force: bool = False) -> Bundle:
    """Stage `export`: write `model.p4q`.

    Raises:
        UsageError: the file exists and `force` is false.
        QualityGateError: no exported graph computes what the fake-quantized module computes.
    """
    source = learned.prepared.source
    classifier = on_cpu(learned.classifier)
    with task("export", total=2) as advance:
        graphs = export_classifier(classifier, spread_images(learned, NOISE_IMAGES).numpy())
        advance(1)
        members: dict[str, bytes | Path] = {
            bundles.GRAPH_FP16: graphs.fp16,
            bundles.GRAPH_FP32: graphs.fp32,
            bundles.WEIGHTS: graphs.weights,
            bundles.HEAD: make_head(replace(learned, classifier=classifier)).to_bytes(),
            bundles.PREPROCESS: encode_json(source.model.preprocess),
            bundles.GOLDEN: make_golden(classifier, golden_images(learned)).to_bytes(),
        }
        index, parity, reference = _record_results(learned, graphs)
        members |= reference
        advance(1)
    manifest = Manifest(
        created_by=f"p4q-edge {version('p4q-edge')}",
        model=source.model.info,
        precision=precision_of(learned),
        class_names=source.class_names,
        image_size=source.model.preprocess.size,
        embedding_dim=int(classifier.text_embedding.shape[1]),
        versions={name: version(name) for name in RECORDED_VERSIONS},
        seed=source.recipe.seed,
        recipe=portable_recipe(learned),
        data_index=index,
        parity=parity,
        unsound=dict(graphs.unsound),
        narrowest_bits=graphs.narrowest_bits,
    )
    return bundles.write_bundle(path, manifest, members, force=force)


def on_cpu(classifier: FoldedClassifier) -> FoldedClassifier:
    """Return the classifier on the CPU, where graphs and golden samples are made; a copy where it lies elsewhere."""
    return classifier if device_of(classifier) == CPU else copy.deepcopy(classifier).to(CPU)


def _record_results(learned: Learned, graphs: ExportedGraphs) -> tuple[DataIndex, GraphParity, dict[str, bytes]]:
    """Record what PyTorch gives for test images, or without any what cross-validation gives.

    Returns:
        The index of the images, how near the graphs came, and the member of the bundle with the results.
    """
    index = data_index(learned)
    source = learned.prepared.source
    if source.recipe.zero_shot:
        index = msgspec.structs.replace(index, calibrated_on=loss_without_labels(learned))
    elif not len(source.split.test):
        found = cross_validate(learned.prepared)
        return msgspec.structs.replace(index, cross_validated=found), graphs.parity, {}
    images, labels = validation_images(learned)
    if not len(images):
        return index, graphs.parity, {}
    index = msgspec.structs.replace(index, zero_shot=zero_shot_answers(learned, images))
    reference = record_reference(learned.classifier, images, labels)
    return index, with_median_losses(graphs, reference, images), {bundles.REFERENCE: reference.to_bytes()}


def mean_bits_of(scheme: QuantScheme, encoder: nn.Module) -> float | None:
    """Return the mean of different widths; None where no linear that is still quantized has more than the fewest."""
    mean = 0.0 if scheme.mean_weight_bits is None else mean_weight_bits(encoder)
    return mean if mean > scheme.weight_bits else None


def block_of(scheme: QuantScheme, encoder: nn.Module) -> int | None:
    """Return how many weights share a scale; None where no linear is quantized in blocks, and so no weight is INT4."""
    in_blocks = any(linear.calibrated for linear in quant_linears(encoder).values())
    return scheme.weight_block if in_blocks else None


def precision_of(learned: Learned) -> Precision:
    """Return what is quantized, and whether these widths are executed or carried on 8-bit kernels."""
    section = learned.prepared.source.recipe.quantization
    scheme = section.scheme()
    calibrated = learned.prepared.calibrated
    adapter_in_8_bits = learned.classifier.adapter is None or section.adapter_bits == 8
    quantized = sum(linear.calibrated for linear in quant_linears(learned.classifier).values())
    executed = scheme.execution == "executed" and adapter_in_8_bits
    return Precision(
        weight_bits=scheme.weight_bits,
        activation_bits=scheme.activation_bits,
        execution="executed" if executed else "carried",
        remainder="fp16",
        quantized_linears=quantized,
        attention_bits=scheme.attention_bits,
        weight_block=block_of(scheme, calibrated.encoder),
        number_format=scheme.number_format if quantized else "int",
        mean_weight_bits=mean_bits_of(scheme, calibrated.encoder),
        quantized_attentions=len(quant_products(learned.classifier)),
        quantized_convolutions=sum(conv.calibrated for conv in quant_convs(learned.classifier).values()),
        int8_mac_share=integer_mac_share(learned),
        linear_mac_share=integer_mac_share(learned, convolutions=False) if quant_convs(learned.classifier) else None,
        in_float=calibrated.in_float,
    )


def integer_mac_share(learned: Learned, *, convolutions: bool = True) -> float:
    """Return the quantized share of the image tower's multiply-accumulates, with or without its convolutions."""
    source = learned.prepared.source
    image = to_batch(
        pixels(source.split.measured.subset(np.zeros(1, dtype=int)), source.model.preprocess), source.model.preprocess
    )
    image = image.to(source.model.compute.device)
    return count_macs(learned.prepared.calibrated.encoder, image, convolutions=convolutions).integer_share


def golden_images(learned: Learned) -> Tensor:
    """Return the samples that prove an engine where it runs, uint8 `(n, 3, H, W)`."""
    return spread_images(learned, learned.prepared.source.recipe.export.golden_samples)


def spread_images(learned: Learned, count: int) -> Tensor:
    """At most `count` of the images that ranges are measured on, spread over the classes, uint8 `(n, 3, H, W)`."""
    images = learned.prepared.source.split.measured
    count = min(count, len(images))
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    return pixels(images.subset(chosen), learned.prepared.source.model.preprocess)


def make_golden(classifier: FoldedClassifier, images: Tensor) -> Golden:
    """Return what the fake-quantized and the float classifier compute on the golden images."""
    logits, embedding, features = run_folded(classifier, images, phase=Phase.QUANTIZED)
    float_logits, float_embedding, _ = run_folded(classifier, images, phase=Phase.FLOAT)
    on_cpu = {}
    if quant_convs(classifier):
        found = run_folded(classifier, images, phase=Phase.QUANTIZED, as_cpu_graph=True)
        on_cpu = dict(zip(OUTPUT_NAMES, (values.numpy() for values in found), strict=True))
    return Golden(
        image=images.numpy(),
        features=features.numpy(),
        embedding=embedding.numpy(),
        logits=logits.numpy(),
        float_embedding=float_embedding.numpy(),
        float_logits=float_logits.numpy(),
        on_cpu=on_cpu,
    )


@torch.no_grad()
def make_head(learned: Learned) -> heads.Head:
    """Return the learned head by itself, for any engine of the same encoder."""
    classifier = learned.classifier
    return heads.Head(
        class_names=learned.prepared.source.class_names,
        text_embedding=classifier.text_embedding.numpy(),
        logit_scale=float(classifier.logit_scale),
        logit_bias=float(classifier.logit_bias),
        adapter=None if classifier.adapter is None else _head_adapter(classifier.adapter),
        # A model with a logit bias was trained with independent classes (SigLIP).
        calibration=heads.Calibration(
            activation="softmax" if learned.prepared.source.model.logit_bias is None else "sigmoid"
        ),
        weights_sha256=learned.prepared.source.model.info.weights_sha256,
    )


def _head_adapter(adapter: Adapter) -> heads.HeadAdapter:
    assert adapter.down.bias is not None
    assert adapter.up.bias is not None
    return heads.HeadAdapter(
        down_weight=adapter.down.quantized_weight().numpy(),
        down_bias=adapter.down.bias.numpy(),
        up_weight=adapter.up.quantized_weight().numpy(),
        up_bias=adapter.up.bias.numpy(),
        residual_ratio=float(adapter.ratio),
    )


def portable_recipe(learned: Learned) -> RecipeDocument:
    """Return the recipe for the manifest, without where its files lay and where it ran."""
    source = learned.prepared.source
    info = source.model.info
    return to_document(without_folders(source.recipe, model=info.name, pretrained=info.pretrained))


def data_index(learned: Learned) -> DataIndex:
    """Return which images were learned from: names and digests in label order, and how many were left for testing.

    With it what the data calls the classes, where the recipe gave other names for them, the first hand-written prompt
    of each class, and the size of the image tower in full precision.
    """
    source = learned.prepared.source
    split = source.split
    return DataIndex(
        found_names=tuple(split.train.found_names),
        prompts={name: prompts[0] for name, prompts in source.prompts.items()},
        learned=tuple(
            LearnedImage(name=name, label=int(label), sha256=digest)
            for name, label, digest in zip(split.train.names, split.train.labels, source.train_digests, strict=True)
        ),
        test_images=len(split.test),
        float_bytes=_float_bytes(source.model.clip),
    )


def _float_bytes(clip: nn.Module) -> int:
    tower = clip.get_submodule("visual")
    return BYTES_OF_FLOAT * sum(weight.numel() for weight in tower.parameters())
