"""Whether the members of a bundle belong to one model, before an engine is built from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from p4q_edge.runtime.artifacts import Bundle, Head
from p4q_edge.runtime.errors import CorruptArtifactError

EXACT, ROUNDED = 1e-3, 0.02
"""Difference of logits over their scale: of sums in float32, and of products of unit rows in FP16 and bfloat16."""


def check_consistent(bundle: Bundle) -> None:
    """Check that manifest, head, preprocessing and golden samples of a bundle describe one model.

    Raises:
        CorruptArtifactError: two of them contradict each other.
    """
    manifest, head, golden, preprocess = bundle.manifest, bundle.head(), bundle.golden(), bundle.preprocess()
    classes, dim, size = len(manifest.class_names), manifest.embedding_dim, tuple(manifest.image_size)
    found = {
        "class names of the manifest and of the head": (manifest.class_names, head.class_names),
        "image sizes of the manifest and of the preprocessing": (size, tuple(preprocess.size)),
        "image sizes of the manifest and of the golden samples": (size, golden.image.shape[2:]),
        "numbers of classes of the manifest and of the golden logits": (classes, golden.logits.shape[1]),
        "numbers of classes of the manifest and of the float logits": (classes, golden.float_logits.shape[1]),
        "widths of the manifest and of the head": (dim, head.embedding_dim),
        "widths of the manifest and of the golden embeddings": (dim, golden.embedding.shape[1]),
        "widths of the manifest and of the float embeddings": (dim, golden.float_embedding.shape[1]),
    }
    for what, (left, right) in found.items():
        if left != right:
            raise CorruptArtifactError(
                f"{bundle.path}: the {what} differ: {_short(left)} and {_short(right)}. Export the bundle again."
            )
    samples = {"embedding": golden.embedding, "logits": golden.logits}
    _require_rows_of(head, samples, allowed=EXACT, whose=f"{bundle.path}: the logits of its golden samples")
    if head.weights_sha256 not in ("", manifest.model.weights_sha256):
        raise CorruptArtifactError(
            f"{bundle.path}: its head was made for another checkpoint ({head.weights_sha256[:12]!r}) than the manifest "
            f"names ({manifest.model.weights_sha256[:12]}). Export the bundle again."
        )


def check_outputs(bundle: Bundle, outputs: dict[str, np.ndarray], *, input_shape: tuple[int, ...]) -> None:
    """Check that the graph of a bundle takes and gives what its manifest says.

    Args:
        bundle: the bundle.
        outputs: what the graph gives: logits (n, classes), embedding and features (n, dim).
        input_shape: (N, 3, H, W) of the graph.

    Raises:
        CorruptArtifactError: it takes images of another size, or gives other numbers of values.
    """
    manifest = bundle.manifest
    expected = {"logits": len(manifest.class_names), "embedding": manifest.embedding_dim}
    got = {name: outputs[name].shape[1] for name in expected}
    if got != expected or tuple(input_shape[2:]) != tuple(manifest.image_size):
        raise CorruptArtifactError(
            f"{bundle.path}: its graph takes images of {tuple(input_shape[2:])} pixels and gives {got}; the manifest "
            f"says {tuple(manifest.image_size)} and {expected}. Export the bundle again."
        )
    check_folded_head(bundle, outputs)


def check_folded_head(bundle: Bundle, outputs: Mapping[str, np.ndarray]) -> None:
    """Check that a graph or engine of a bundle has the head folded in that the bundle holds.

    Args:
        bundle: the bundle.
        outputs: of the graph or engine: logits (n, classes) and embedding (n, dim).

    Raises:
        CorruptArtifactError: it names its classes otherwise, or is surer or less sure of them.
    """
    _require_rows_of(bundle.head(), outputs, allowed=ROUNDED, whose=f"{bundle.path}: the logits of its graph")


def _require_rows_of(head: Head, outputs: Mapping[str, np.ndarray], *, allowed: float, whose: str) -> None:
    """Check that logits are those that a head gives to embeddings, which are behind its adapter.

    Classes in another order, or another scale, change neither an embedding nor the best row, but what that is called
    and how sure it is.
    """
    expected = head.logit_scale * (outputs["embedding"] @ head.text_embedding.T) + head.logit_bias
    difference = float(np.abs(outputs["logits"] - expected).max())
    most = allowed * (abs(head.logit_scale) + abs(head.logit_bias))
    if not difference <= most:
        raise CorruptArtifactError(
            f"{whose} are not those of its head: they differ by {difference:.3g}, at most {most:.3g} is expected. "
            "Export the bundle again."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
