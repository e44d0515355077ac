"""Features on disk: computed shard by shard, each with its digest, and read through a memory map."""

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import atomic_write, decode_json, encode_json, write_error
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

SHARD_IMAGES = 256
"""What is lost at most where a run is killed; a multiple of a batch, so that each is of one shard."""
_DIGEST_BYTES = 32
_VALUE_BYTES = 4


class FeatureSink(Protocol):
    """Takes features shard by shard and gives them back as one tensor."""

    def missing(self) -> list[range]:
        """Return the images of each shard that is still to be computed, in order."""

    def write(self, first: int, rows: Tensor) -> None:
        """Take the features `(views, n, dim)` float32 of a shard's images, which begin at number `first`."""

    def read(self) -> Tensor:
        """Return all features, `(views, images, dim)` float32."""


def shards(images: int) -> list[range]:
    """Return the images of each shard."""
    return [range(first, min(images, first + SHARD_IMAGES)) for first in range(0, images, SHARD_IMAGES)]


@dataclass(kw_only=True)
class HeldFeatures:
    """Features in memory, for what is not kept."""

    images: int
    parts: dict[int, Tensor] = field(default_factory=dict)

    def missing(self) -> list[range]:
        """See `FeatureSink`."""
        return [shard for shard in shards(self.images) if shard.start not in self.parts]

    def write(self, first: int, rows: Tensor) -> None:
        """See `FeatureSink`."""
        self.parts[first] = rows

    def read(self) -> Tensor:
        """See `FeatureSink`."""
        return torch.cat([self.parts[first] for first in sorted(self.parts)], dim=1)


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    shape: tuple[int, int, int]
    shard_images: int


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """Features in a folder, as one matrix for each view.

    `NAME-KEY.json` tells the shape, `.rows` holds float32 values, `.digests` 32 bytes for each shard, written
    after its rows have reached the disk. A shard whose rows are not those of its digest is one that is missing.

    Attributes:
        folder: is made if it is not there.
        name: whose features these are; others of this name are removed when these are begun.
        key: digest of everything that decides the features.
        views: of each image.
        images: how many.
    """

    folder: Path
    name: str
    key: str
    views: int
    images: int

    @property
    def rows(self) -> Path:
        """The file of the values."""
        return self._file(".rows")

    @property
    def digests(self) -> Path:
        """The file of the shards' digests."""
        return self._file(".digests")

    def missing(self) -> list[range]:
        """Return the images of each shard that is not there or differs from its digest, in order."""
        every = shards(self.images)
        header = self._header()
        if header is None:
            return every
        recorded = self.digests.read_bytes().ljust(len(every) * _DIGEST_BYTES, b"\0")
        found = []
        with self.rows.open("rb") as stream:
            for index, shard in enumerate(every):
                digest = recorded[index * _DIGEST_BYTES :][:_DIGEST_BYTES]
                if not any(digest):
                    found.append(shard)
                    continue
                parts = []
                for view in range(self.views):
                    stream.seek(_place(header.shape, view, shard.start))
                    parts.append(stream.read(len(shard) * header.shape[2] * _VALUE_BYTES))
                if self._digest(shard, parts) != digest:
                    logger.warning(
                        "%s is damaged: images %d to %d differ from their digest and are computed again",
                        *(self.rows, shard.start, shard.stop - 1),
                    )
                    found.append(shard)
        return found

    def write(self, first: int, rows: Tensor) -> None:
        """Store the features `(views, n, dim)` float32 of a shard's images, which begin at number `first`.

        Raises:
            UsageError: the folder cannot be written.
            P4QEdgeError: the disk is full.
        """
        values = rows.detach().cpu().numpy().astype("<f4", copy=False)
        shape = (self.views, self.images, values.shape[2])
        parts = [np.ascontiguousarray(view).tobytes() for view in values]
        shard = range(first, first + values.shape[1])
        try:
            if self._header() is None:
                self._begin(shape)
            _write_at(self.rows, [(_place(shape, view, first), part) for view, part in enumerate(parts)])
            _write_at(self.digests, [(first // SHARD_IMAGES * _DIGEST_BYTES, self._digest(shard, parts))])
        except OSError as error:
            raise write_error(self.rows, error) from error

    def read(self) -> Tensor:
        """Return all features, `(views, images, dim)` float32, mapped: pages are read when they are asked for.

        What is written into the tensor does not reach the file.

        Raises:
            CorruptArtifactError: shards are not there; `missing` tells which to compute first.
        """
        header = self._header()
        recorded = b"" if header is None else self.digests.read_bytes()
        there = sum(any(recorded[first : first + _DIGEST_BYTES]) for first in range(0, len(recorded), _DIGEST_BYTES))
        if header is None or there < len(shards(self.images)):
            raise CorruptArtifactError(
                f"{self.rows}: {there} of {number_of(len(shards(self.images)), 'shard')} "
                f"{one_or_many(there, 'is', 'are')} there. Does another process write the "
                "same run folder? Run the command again"
            )
        return torch.from_numpy(np.memmap(self.rows, dtype="<f4", mode="c", shape=header.shape))

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.name}-{self.key[:16]}{suffix}"

    def _header(self) -> _Header | None:
        """Return what the stored features are; None where there are none of this key."""
        path = self._file(".json")
        if not (path.is_file() and self.rows.is_file() and self.digests.is_file()):
            return None
        try:
            header = decode_json(path.read_bytes(), _Header, source=str(path))
        except CorruptArtifactError as error:
            logger.warning("%s; all features are computed again", error)
            return None
        expected = (self.key, self.views, self.images, SHARD_IMAGES)
        if (header.key, *header.shape[:2], header.shard_images) != expected:
            return None
        return header if self.rows.stat().st_size == _place(header.shape, self.views, 0) else None

    def _begin(self, shape: tuple[int, int, int]) -> None:
        """Remove what else is stored under this name, and make files without any shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{self.name}-*"):
            with contextlib.suppress(OSError):  # another process of some systems may read it
                old.unlink()
        self.digests.write_bytes(bytes(len(shards(self.images)) * _DIGEST_BYTES))
        with self.rows.open("wb") as stream:
            stream.truncate(_place(shape, self.views, 0))
        header = _Header(key=self.key, shape=shape, shard_images=SHARD_IMAGES)
        atomic_write(self._file(".json"), encode_json(header), force=True)

    def _digest(self, shard: range, parts: list[bytes]) -> bytes:
        state = hashlib.sha256(f"{self.key} {shard.start} {shard.stop}\n".encode())
        for part in parts:
            state.update(part)
        return state.digest()


def _place(shape: tuple[int, int, int], view: int, image: int) -> int:
    """Where the values of an image in a view begin, in bytes."""
    _, images, dim = shape
    return (view * images + image) * dim * _VALUE_BYTES


def _write_at(path: Path, parts: list[tuple[int, bytes]]) -> None:
    """Write bytes at their places; when this returns, they survive a power cut."""
    with path.open("r+b") as stream:
        for place, data in parts:
            stream.seek(place)
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
