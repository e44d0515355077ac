"""Features of the labelled images' views, streamed: decoded ahead, encoded batch by batch, stored shard by shard."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from p4q_edge.data import ImageStream, Moves, augment
from p4q_edge.learning import CachedFeatures, FeatureSink, Unlabelled
from p4q_edge.models import (
    ALONE,
    BATCH_SIZE,
    ON_CPU,
    Batches,
    Compute,
    LoadedModel,
    PixelSource,
    Team,
    encode_batches,
    teacher_precision,
)
from p4q_edge.runtime.images import ImageSet, PreprocessSpec
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.storage import StageCode
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

FEATURES = StageCode(
    modules=("p4q_edge.stages.features",),
    rooms=("p4q_edge.data", "p4q_edge.runtime.images", "p4q_edge.models"),
)


@dataclass(frozen=True, kw_only=True)
class TrainViews:
    """The views that are learned from; each is decided by its image's place and its own number.

    Attributes:
        images: labelled.
        spec: how the encoder takes them.
        count: of views of each image; the first is the image itself.
        flip: whether the others may be mirrored.
        seed: of their drawing.
        workers: processes that decode, 0 for this one alone.
        pinned: whether the images go to a GPU.
    """

    images: ImageSet
    spec: PreprocessSpec
    count: int
    flip: bool
    seed: int
    workers: int = 0
    pinned: bool = False

    def stream(self) -> ImageStream:
        """Return the images themselves, decoded when they are asked for."""
        return ImageStream(images=self.images, spec=self.spec, workers=self.workers, pinned=self.pinned)

    def moves(self) -> list[Moves]:
        """Return how the images are moved in each view behind the first."""
        generator = torch.Generator().manual_seed(self.seed)
        return [Moves.draw(len(self.images), generator=generator, flip=self.flip) for _ in range(1, self.count)]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """An encoder and where its features go.

    Attributes:
        encoder: of images.
        sink: takes the features.
        exact: in the precision of [compute]: the float tower.
        compute: the device that the encoder lies on.
    """

    encoder: nn.Module
    sink: FeatureSink
    exact: bool = False
    compute: Compute = ON_CPU

    def encode(self, images: Tensor, spec: PreprocessSpec) -> Tensor:
        """Return features `(n, dim)` of uint8 images `(n, 3, H, W)`."""
        if not self.exact:
            return image_features(self.encoder, images, spec, self.compute)
        with teacher_precision(self.compute):
            return image_features(self.encoder, images, spec, self.compute)


def store_features(views: TrainViews, towers: Sequence[Tower], team: Team = ALONE) -> None:
    """Compute what the towers' sinks miss, each image decoded once; batches are the same whatever is missing.

    A team deals the shards; the sinks of all its processes must then have one place, as those of a folder do.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    wanted: dict[int, list[Tower]] = {}
    ranges: dict[int, range] = {}
    for tower in towers:
        for shard in tower.sink.missing():
            wanted.setdefault(shard.start, []).append(tower)
            ranges[shard.start] = shard
    team.wait()  # until all have seen what is missing
    if not wanted:
        return
    todo = [ranges[first] for first in sorted(ranges)]
    missing = sum(len(shard) for shard in todo)
    if missing < len(views.images):
        logger.info(
            "features: %d of %s stored already", len(views.images) - missing, number_of(len(views.images), "image")
        )
    found = _encoded(views, wanted, todo[team.dealt])
    first = next(found, None)
    team.after_first(lambda: _store(first))  # that of the first process begins the files
    for shard_features in found:
        _store(shard_features)
    team.wait()


@dataclass(frozen=True, kw_only=True)
class _ShardFeatures:
    """What towers say about the images of a shard, `(views, n, dim)` each."""

    shard: range
    of_towers: Sequence[tuple[Tower, Tensor]]


def _store(found: _ShardFeatures | None) -> None:
    if found is not None:
        for tower, features in found.of_towers:
            tower.sink.write(found.shard.start, features)


def _encoded(
    views: TrainViews, wanted: Mapping[int, Sequence[Tower]], todo: Sequence[range]
) -> Iterator[_ShardFeatures]:
    """Yield the features of shards by the towers that want them, by the number of the first image."""
    if not todo:
        return
    rows = np.concatenate([np.arange(shard.start, shard.stop) for shard in todo])
    stream = replace(views, images=views.images.subset(rows)).stream()
    # Either divides a shard. What is encoded at once may be less, and is decided by the device.
    more = any(t.compute.meter or t.compute.batch_size > ON_CPU.batch_size for t in wanted[todo[0].start])
    size = max(len(shard) for shard in todo) if more else BATCH_SIZE
    chunks, moves = iter(stream.split(size)), views.moves()
    with task("features", total=len(rows), unit="images") as advance:
        for shard in todo:
            found: list[list[Tensor]] = [[] for _ in wanted[shard.start]]
            for first in range(shard.start, shard.stop, size):
                chunk = next(chunks)
                each = [chunk, *(move.apply(chunk, first=first) for move in moves)]
                for parts, tower in zip(found, wanted[shard.start], strict=True):
                    parts.append(torch.stack([tower.encode(view, views.spec) for view in each]))
                advance(len(chunk))
            features = [torch.cat(parts, dim=1) for parts in found]
            yield _ShardFeatures(shard=shard, of_towers=[*zip(wanted[shard.start], features, strict=True)])


def cached_features(views: TrainViews, student: Tower, teacher: Tower, team: Team = ALONE) -> CachedFeatures:
    """Return what two towers say about all views, computed as far as it is missing; nothing of no images."""
    if not len(views.images):
        nothing = torch.zeros(views.count, 0, 0, device="cpu")
        return CachedFeatures(student=nothing, teacher=nothing, labels=torch.from_numpy(views.images.labels))
    store_features(views, [student, teacher], team)
    labels = torch.from_numpy(views.images.labels)
    return CachedFeatures(student=student.sink.read(), teacher=teacher.sink.read(), labels=labels)


def unlabelled_features(images: TrainViews, student: Tower, teacher: Tower, team: Team = ALONE) -> Unlabelled:
    """Return what two towers say about images without labels, computed as far as it is missing."""
    store_features(images, [student, teacher], team)
    return Unlabelled(student=student.sink.read()[0], teacher=teacher.sink.read()[0])


def augmented_views(images: Tensor, count: int, *, flip: bool, seed: int) -> Iterator[Tensor]:
    """`count` views of uint8 images `(N, 3, H, W)`; the first is the images, fewer views are the first of more."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        yield augment(images, generator=generator, flip=flip) if number else images


def image_features(encoder: nn.Module, images: PixelSource, spec: PreprocessSpec, compute: Compute = ON_CPU) -> Tensor:
    """Return features `(N, dim)` of uint8 images `(N, 3, H, W)` by an encoder that lies on the device of `compute`."""
    return encode_batches(encoder, Batches(images=images, spec=spec, size=compute.batch_size, compute=compute))


def teacher_features(model: LoadedModel, images: PixelSource) -> Tensor:
    """Return features `(N, dim)` of uint8 images by the float encoder, in the precision of [compute]."""
    visual: nn.Module = model.clip.visual  # type: ignore[assignment]
    with teacher_precision(model.compute):
        return image_features(visual, images, model.preprocess, model.compute)


def teacher_embeddings(model: LoadedModel, images: PixelSource) -> Tensor:
    """Return the same, normalized."""
    return nn.functional.normalize(teacher_features(model, images), dim=-1)
