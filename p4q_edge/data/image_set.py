"""How labelled images become the pixels that a model learns from: held together, or decoded batch by batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError
from p4q_edge.runtime.images import ImageSet, PreprocessSpec, preprocess
from p4q_edge.runtime.machine import cpu
from p4q_edge.runtime.progress import tracked

HELD_BYTES = 256 << 20
CHUNK = 64
BATCHES_AHEAD = 2
"""Of each worker process. With it go shared memory and, in containers, its small default limit."""


def pixels(images: ImageSet, spec: PreprocessSpec) -> Tensor:
    """Return all images as the engine takes them, uint8 `(images, 3, H, W)`; for few, as all are held.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    return torch.from_numpy(_decoded(images, spec, tracked(range(len(images)), "read images"), len(images)))


@dataclass(frozen=True, kw_only=True)
class ImageStream:
    """Labelled images as the engine takes them, decoded when they are asked for; at most a few batches are alive.

    Order and values do not depend on the number of processes.

    Attributes:
        images: what is decoded.
        spec: how the engine takes them.
        workers: processes that decode ahead, 0 for this one alone.
        pinned: put batches where a GPU fetches them by itself; only where there is one.
    """

    images: ImageSet
    spec: PreprocessSpec
    workers: int = 0
    pinned: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the tensor of all images, `(images, 3, H, W)`."""
        height, width = self.spec.size
        return len(self.images), 3, height, width

    def __getitem__(self, rows: slice) -> Tensor:
        """Decode some images here and now, uint8 `(n, 3, H, W)`; for few.

        Raises:
            InputError: an image cannot be read; the message names it.
        """
        chosen = range(*rows.indices(len(self)))
        return torch.from_numpy(_decoded(self.images, self.spec, iter(chosen), len(chosen)))

    def held(self) -> "Tensor | ImageStream":
        """Return all images as a tensor where they need little memory, for what runs through them often; else self."""
        count, channels, height, width = self.shape
        if count * channels * height * width > HELD_BYTES:
            return self
        return torch.cat([*tracked(self.split(CHUNK), "read images", total=-(-count // CHUNK))])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, up to `size` at once, uint8 `(n, 3, H, W)`.

        Raises:
            InputError: an image cannot be read; the message names it.
            EnvironmentNotAbleError: a process that decodes was ended from outside.
        """
        chunks = _Chunks(self.images, self.spec, size)
        workers = min(self.workers, len(chunks))  # a further one would be started for nothing
        loader = DataLoader(
            chunks,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            pin_memory=self.pinned,
            # Its own generator, as a loader takes a number from the global one, on which other results depend.
            generator=torch.Generator().manual_seed(0),
        )
        with _cores_left_by(workers):
            yield from _checked(iter(loader))


@contextmanager
def _cores_left_by(workers: int) -> Iterator[None]:
    """Compute on the cores that processes which decode leave.

    A parallel loop waits for its last thread: two threads, of which one shares its core with a process that decodes,
    are many times slower than one alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, cpu.usable_cores() - workers)) if workers else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checked(batches: Iterator[Tensor | P4QEdgeError]) -> Iterator[Tensor]:
    while True:
        try:
            chunk = next(batches, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise EnvironmentNotAbleError(
                f"a process that decodes images was ended from outside: {error}. Free memory (in a container also "
                "shared memory, --shm-size), or decode without processes: compute.workers = 0"
            ) from error
        if chunk is None:
            return
        if isinstance(chunk, P4QEdgeError):
            raise chunk
        yield chunk


class _Chunks(Dataset[Tensor | P4QEdgeError]):
    """A whole batch for each index, so that batches are the same by whichever process."""

    def __init__(self, images: ImageSet, spec: PreprocessSpec, size: int) -> None:
        self.images, self.spec, self.size = images, spec, size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, index: int) -> Tensor | P4QEdgeError:
        rows = range(index * self.size, min(len(self.images), (index + 1) * self.size))
        try:
            return torch.from_numpy(_decoded(self.images, self.spec, iter(rows), len(rows)))
        except P4QEdgeError as error:  # as a value: the loader would wrap its text in a traceback
            return error


def _decoded(images: ImageSet, spec: PreprocessSpec, rows: Iterator[int], count: int) -> np.ndarray:
    out = np.empty((count, 3, *spec.size), dtype=np.uint8)
    for place, row in enumerate(rows):
        out[place] = preprocess(images.open_image(row), spec)
    return out
