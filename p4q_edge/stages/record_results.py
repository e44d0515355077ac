"""What PyTorch computes on validation images, recorded in the bundle for devices that have no PyTorch."""

import logging
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from p4q_edge.data import pixels
from p4q_edge.graph import ExportedGraphs, run_in_onnxruntime
from p4q_edge.models import FoldedClassifier, run_folded
from p4q_edge.quant import Phase, quant_convs
from p4q_edge.runtime.artifacts import CalibratedOn, GraphParity, RecordedResults, pixel_digest
from p4q_edge.runtime.choices import GraphKind
from p4q_edge.runtime.images import ImageSet, draw_subset
from p4q_edge.runtime.statistics import bootstrap_quantile, cosine_rows
from p4q_edge.runtime.wording import number_of
from p4q_edge.stages.pipeline import Learned
from p4q_edge.stages.source import Source

logger = logging.getLogger(__name__)

LOSS_IMAGES = 128
"""Number of images on which the median loss of the exported graphs is measured."""
_BATCH_SIZE = 32


def validation_images(learned: Learned) -> tuple[Tensor, np.ndarray]:
    """Return the images whose results are recorded, drawn from those that were not learned from.

    Returns:
        uint8 `(n, 3, H, W)` and int32 `(n,)` labels; n is 0 where the recipe asks for none.
    """
    source = learned.prepared.source
    part = recorded_images(source)
    return pixels(part, source.model.preprocess), part.labels.astype(np.int32)


def recorded_images(source: Source) -> ImageSet:
    """Return the images whose results are recorded; none where the recipe asks for none."""
    wanted, test = source.recipe.export.reference_images, source.split.test
    return test.subset(draw_subset(len(test), wanted, seed=source.recipe.seed) if wanted else np.arange(0))


@torch.no_grad()
def zero_shot_answers(learned: Learned, images: Tensor) -> tuple[int, ...]:
    """Return the class of each image uint8 `(n, 3, H, W)` by the full-precision model and hand-written prompts."""
    _, _, features = run_folded(learned.classifier, images, phase=Phase.FLOAT)
    scores = torch.nn.functional.normalize(features, dim=-1) @ learned.student.hand_written.cpu().T
    return tuple(int(answer) for answer in scores.argmax(dim=1))


@torch.no_grad()
def loss_without_labels(learned: Learned) -> CalibratedOn:
    """Where no image has a label: what quantization changes, on images that no range was measured on."""
    source, classifier = learned.prepared.source, learned.classifier
    held_out, calibrated = source.split.held_out, learned.prepared.calibrated
    found = CalibratedOn(source=Path(source.recipe.data.calibration).name, images=calibrated.images)
    if held_out is None or not len(held_out):
        return found
    images = source.stream(held_out)
    logits, embedding, _ = run_folded(classifier, images, phase=Phase.QUANTIZED)
    float_logits, float_embedding, _ = run_folded(classifier, images, phase=Phase.FLOAT)
    cosine = cosine_rows(embedding.numpy(), float_embedding.numpy())
    return msgspec.structs.replace(
        found,
        held_out=len(held_out),
        same_answer=int((logits.argmax(dim=1) == float_logits.argmax(dim=1)).sum()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
    )


@torch.no_grad()
def record_reference(classifier: FoldedClassifier, images: Tensor, labels: np.ndarray) -> RecordedResults:
    """Run the fake-quantized and the float classifier on uint8 `(n, 3, H, W)`, n at least 1."""
    logger.info("export: results of PyTorch on %s", number_of(len(images), "validation image"))
    _, embedding, _ = run_folded(classifier, images, phase=Phase.QUANTIZED)
    _, float_embedding, _ = run_folded(classifier, images, phase=Phase.FLOAT)
    cpu_embedding = None
    if quant_convs(classifier):
        cpu_embedding = run_folded(classifier, images, phase=Phase.QUANTIZED, as_cpu_graph=True)[1].numpy()
    return RecordedResults(
        digest=np.stack([np.frombuffer(pixel_digest(image), np.uint8) for image in images.numpy()]),
        label=labels,
        embedding=embedding.numpy(),
        float_embedding=float_embedding.numpy(),
        cpu_embedding=cpu_embedding,
    )


def with_median_losses(graphs: ExportedGraphs, reference: RecordedResults, images: Tensor) -> GraphParity:
    """Parity of the graphs, with the median of 1 - cosine between the fake-quantized module and each."""
    few = images[:LOSS_IMAGES].numpy()
    losses: dict[GraphKind, float] = {}
    every: dict[GraphKind, bytes] = {"fp32": graphs.fp32, "fp16": graphs.fp16}
    for name, graph in every.items():
        if name in graphs.unsound:
            continue
        # A few at a time: the activations of all would need gigabytes.
        batches = [few[start : start + _BATCH_SIZE] for start in range(0, len(few), _BATCH_SIZE)]
        found = np.concatenate([run_in_onnxruntime(graph + graphs.weights, batch)["embedding"] for batch in batches])
        expected = (reference if name == "fp16" else reference.for_cpu()).embedding
        loss = 1.0 - cosine_rows(expected[: len(few)], found)
        median = bootstrap_quantile(loss, 0.5, generator=np.random.default_rng(0))
        losses[name] = max(median.high, 0.0)
    parity: GraphParity = msgspec.structs.replace(graphs.parity, median_loss=losses, loss_images=len(few))
    return parity
