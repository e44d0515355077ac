"""What PyTorch computed on validation images, in the bundle: the reference of a device, which has no PyTorch.

The images themselves do not travel. Each is known by the SHA-256 of the pixels that the engine gets, so that a folder
of files, an array and a table of the same images all fit, and other pixels never pass for the ones that were measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.stage import Images
from p4q_edge.runtime.storage import load_tensors, save_tensors

DIGEST_BYTES = 32
_INTEGERS: Mapping[str, str] = {"digest": "<u1", "label": "<i4"}
_FLOATS = ("embedding", "float_embedding")
_NAMES = (*_INTEGERS, *_FLOATS)
_ON_CPU = "cpu_embedding"


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedResults:
    """Results of n images.

    Logits, answers and probabilities follow from the embeddings and the bundle's head.

    Attributes:
        digest: (n, 32) uint8, see `pixel_digest`.
        label: (n,) int32, index into the bundle's class names.
        embedding: (n, dim) float32 of the fake-quantized model, L2-normalized.
        float_embedding: (n, dim) float32 of the full-precision model, likewise.
        cpu_embedding: (n, dim) float32 of the model quantized as the graph for CPUs; None where both graphs are alike.
    """

    digest: np.ndarray
    label: np.ndarray
    embedding: np.ndarray
    float_embedding: np.ndarray
    cpu_embedding: np.ndarray | None = None

    def for_cpu(self) -> RecordedResults:
        """Return the results that the graph for CPUs is compared with."""
        return self if self.cpu_embedding is None else replace(self, embedding=self.cpu_embedding, cpu_embedding=None)

    def __len__(self) -> int:
        return len(self.label)

    def to_bytes(self) -> bytes:
        """Return the results as safetensors: 36 bytes and two embeddings an image."""
        tensors = {name: getattr(self, name) for name in _NAMES}
        if self.cpu_embedding is not None:
            tensors[_ON_CPU] = self.cpu_embedding
        return save_tensors(tensors, {"format": "p4q-edge reference 1"})

    def match(self, images: Images, order: Iterable[int], *, limit: int = 0) -> tuple[dict[int, int], int]:
        """Return the row of each image that has results, and how many images were looked at.

        Args:
            images: uint8 (n, 3, H, W) slices.
            order: indices of images, in the order in which they are looked at.
            limit: stop at this number; 0 looks at all.
        """
        known = self.known()
        rows: dict[int, int] = {}
        seen = 0
        for index in order:
            seen += 1
            row = known.get(pixel_digest(images[slice(int(index), int(index) + 1)][0]))
            if row is not None:
                rows[int(index)] = row
            if limit and len(rows) == limit:
                break
        return rows, seen

    def known(self) -> dict[bytes, int]:
        """Return the row of each image by the digest of its pixels."""
        return {row.tobytes(): index for index, row in enumerate(self.digest)}


def pixel_digest(image: np.ndarray) -> bytes:
    """Return the SHA-256 of an image uint8 (3, H, W), as the engine takes it."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def read_reference(data: bytes, *, classes: int, dim: int, source: str) -> RecordedResults:
    """Return recorded results from safetensors, for `classes` classes and embeddings of `dim` numbers.

    Raises:
        CorruptArtifactError: a tensor is missing or has an unexpected shape, dtype or value.
    """
    tensors, _ = load_tensors(data, source=source)
    absent = [name for name in _NAMES if name not in tensors]
    if absent:
        raise CorruptArtifactError(f"{source} lacks the tensors {', '.join(absent)}. Export the bundle again.")
    count = len(tensors["label"]) if tensors["label"].ndim == 1 else -1
    fits = count > 0 and tensors["digest"].shape == (count, DIGEST_BYTES)
    fits &= all(tensors[name].dtype == dtype for name, dtype in _INTEGERS.items())
    on_cpu = tensors.get(_ON_CPU)
    for tensor in (*(tensors[name] for name in _FLOATS), *(() if on_cpu is None else (on_cpu,))):
        fits &= tensor.shape == (count, dim) and tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())
    if not fits or not 0 <= tensors["label"].min() <= tensors["label"].max() < classes:
        shapes = {name: tensors[name].shape for name in _NAMES}
        raise CorruptArtifactError(
            f"{source}: expected digests (n, {DIGEST_BYTES}) uint8, labels (n,) int32 below {classes} and finite "
            f"float32 embeddings (n, {dim}); got {shapes}. Export the bundle again."
        )
    return RecordedResults(**{name: tensors[name] for name in _NAMES}, cpu_embedding=on_cpu)
