"""Many images as normalized batches, and as many at once through a tower as its device holds."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from p4q_edge.models.compute import ON_CPU, Compute
from p4q_edge.models.image_tower import pooled
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.progress import task, tracked

logger = logging.getLogger(__name__)

LARGEST_BATCH = 1024
"""A GPU is busy with far fewer, and the pixels of more would take gigabytes."""

T = TypeVar("T")


class PixelSource(Protocol):
    """Uint8 images `(N, 3, H, W)`: a tensor, or a stream that decodes them when they are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """`(N, 3, H, W)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Yield all in order, up to `size` at once."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The normalized batches of many images, made one at a time whenever they are run through.

    Attributes:
        images: uint8 `(N, 3, H, W)`, on the CPU.
        spec: gives the normalization.
        size: images of a batch; at first, where `run_batches` lets them grow.
        compute: the device that they come to.
    """

    images: PixelSource
    spec: PreprocessSpec
    size: int
    compute: Compute = ON_CPU

    @classmethod
    def of(cls, model: LoadedModel, images: PixelSource) -> "Batches":
        """As a model takes them, on its device, as many at once as its [compute] says."""
        return cls(images=images, spec=model.preprocess, size=model.compute.batch_size, compute=model.compute)

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.normalized(chunk) for chunk in self.images.split(self.size))

    def normalized(self, chunk: Tensor) -> Tensor:
        """Uint8 images `(n, 3, H, W)` as a tower takes them, float32 on its device."""
        # Pinned pixels go while the GPU still computes what came before.
        batch = to_batch(chunk.to(self.compute.device, non_blocking=chunk.is_pinned()), self.spec)
        # Convolutions of CPUs are twice as fast on channels that lie side by side; values stay the same.
        return batch.contiguous(memory_format=torch.channels_last)


def run_batches(
    run: Callable[[Tensor], T], batches: Batches, words: str, *, restart: Callable[[], None] | None = None
) -> list[T]:
    """Run a function on all images, as many at once as fit, and return what it gives for each batch.

    On a device whose memory is metered, batches grow to twice their size while that fits. Where memory runs out they
    shrink to half from there on, one line says so, and the images are run again.

    Args:
        words: what the progress is called.
        restart: for a `run` that keeps something of each batch, so that an image must not be run twice: forgets all
            that was kept. After memory ran out, all images are run again.

    Raises:
        EnvironmentNotAbleError: one image alone needs more memory than there is.
    """
    size = _Size(batches)
    while True:
        results: list[T] = []
        with task(words, total=len(batches.images)) as advance:
            for chunk in batches.images.split(size.fetched):
                done, ended = _run_chunk(run, batches, chunk, size, again=restart is None)
                results += done
                if not ended:
                    break
                advance(len(chunk))
            else:
                return results
        assert restart is not None
        restart()


class _Size:
    """How many images run at once: grows while memory is metered and not used, shrinks where it ran out."""

    def __init__(self, batches: Batches) -> None:
        self.now = batches.size
        self.compute = batches.compute
        self.meter = batches.compute.meter
        self.fetched = batches.size if self.meter is None else max(batches.size, LARGEST_BATCH)

    def start(self) -> None:
        if self.meter is not None:
            self.meter.start()

    def passed(self) -> None:
        if self.meter is not None and self.now < LARGEST_BATCH and self.meter.fits_twice():
            self.now *= 2

    def failed(self, error: torch.OutOfMemoryError) -> None:
        if self.now == 1:
            raise EnvironmentNotAbleError(
                f"one image alone needs more memory than {self.compute.device} has left. Free some, or use --device cpu"
            ) from error
        before, self.now, self.meter = self.now, self.now // 2, None
        logger.warning(
            "%s ran out of memory with %d images at once; going on with %d", self.compute.device, before, self.now
        )


def _run_chunk(
    run: Callable[[Tensor], T], batches: Batches, chunk: Tensor, size: _Size, *, again: bool
) -> tuple[list[T], bool]:
    """Return what `run` gives for a chunk's batches; False where memory ran out and `again` forbids a second try."""
    results, start = [], 0
    while start < len(chunk):
        some = chunk[start : start + size.now]
        size.start()
        try:
            results.append(run(batches.normalized(some)))
        except torch.OutOfMemoryError as error:
            size.failed(error)
            if not again:
                return results, False
            continue
        start += len(some)
        size.passed()
    return results, True


@torch.no_grad()
def encode_batches(encoder: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return all batches' features by an `ImageEncoder` or a tower of open_clip, `(images, dim)` float32 on the CPU."""

    def encode(batch: Tensor) -> Tensor:
        return pooled(encoder(batch)).float().cpu()

    if isinstance(batches, Batches):
        return torch.cat(run_batches(encode, batches, "encode images"))
    return torch.cat([encode(batch) for batch in tracked(batches, "encode images")])
