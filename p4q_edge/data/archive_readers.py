"""Labelled images in one file: ``.npz`` arrays and webdataset tars."""

import lzma
import struct
import sys
import tarfile
import tokenize
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import SUFFIXES, ImageSet, load_image

MAX_IMAGE_BYTES = 64 << 20
MAX_RATIO = 100
MAX_LOOSE_BYTES = 512 << 20
LARGE_RATIO = 4
MAX_TEXT_BYTES = 1 << 20
MAX_CLASSES = 1 << 16
MAX_LABEL_LENGTH = 20
MAX_ARRAY_BYTES = 4 << 30
CLASS_NAMES_FILE = "classnames.txt"

# What NumPy raises on files that are damaged or of another kind; it promises no common class.
_NPZ_ERRORS = (
    KeyError,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
    AttributeError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


def read_npz(path: Path) -> ImageSet:
    """Read uint8 ``images`` (N, H, W, 3) or (N, H, W), integer ``labels`` (N,) and ``class_names``.

    Raises:
        InputError: arrays are missing, pickled or of another kind.
    """
    try:
        # Opened here, as NumPy leaves a file that it refuses open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            _check_unpacked(path)
            images, labels, class_names = (_array(archive[name]) for name in ("images", "labels", "class_names"))
    except _NPZ_ERRORS as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} needs arrays images, labels and class_names (no pickles): {said}") from error
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise InputError(f"{path}: images must be uint8 (N, H, W, 3) or (N, H, W), got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise InputError(
            f"{path}: labels must be integers, one for each of {len(images)} images, got {labels.dtype} {labels.shape}"
        )
    if class_names.ndim != 1 or class_names.dtype.kind != "U":
        raise InputError(f"{path}: class_names must be a list of strings, got {class_names.dtype} {class_names.shape}")
    if class_names.dtype.itemsize and (_letters(class_names) > sys.maxunicode).any():
        raise InputError(f"{path}: class_names hold letters that Unicode does not have. Write the file again.")
    return from_arrays(images, labels, tuple(map(str, class_names)), path.stem)


def _letters(words: npt.NDArray[np.str_]) -> npt.NDArray[np.uint32]:
    """The code points of an array of strings."""
    return np.ascontiguousarray(words).view(np.dtype(words.dtype.str[0] + "u4"))


def _array(value: object) -> npt.NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"it holds a {type(value).__name__} in place of an array")
    return value


def _check_unpacked(path: Path) -> None:
    """Raise `ValueError` if the arrays would take far more memory than their file, as NumPy unpacks each at once."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    packed = path.stat().st_size
    # Photographs hardly shrink: what shrinks a hundredfold may do so up to a size that every machine has.
    limit = min(MAX_ARRAY_BYTES, max(MAX_IMAGE_BYTES, min(MAX_RATIO * packed, MAX_LOOSE_BYTES), LARGE_RATIO * packed))
    if size > limit:
        raise ValueError(f"its arrays claim {size} bytes, at most {limit} are unpacked from {packed}")
    if any(member.flag_bits & 1 for member in members):
        raise ValueError("it is encrypted")


def from_arrays(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], class_names: tuple[str, ...], stem: str
) -> ImageSet:
    """Images that are pixels already: uint8 (N, H, W, 3) or (N, H, W)."""
    return ImageSet(
        names=tuple(f"{stem}[{i}]" for i in range(len(images))),
        labels=_checked(labels, class_names, stem),
        class_names=class_names,
        open_image=lambda i: Image.fromarray(images[i]),
        read_bytes=lambda i: images[i].tobytes(),
    )


@dataclass(kw_only=True)
class _Members:
    """What a tar holds: where each image lies, the class index of each key, and the names of the classes."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


class _BoundedInfo(tarfile.TarInfo):
    """A header of a tar whose own data, which the library reads as one piece, is bounded."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


def read_tar(path: Path) -> ImageSet:
    """Read a webdataset shard: ``KEY.jpg`` with ``KEY.cls`` (class index) and, optionally, ``classnames.txt``.

    Images stay in the file until they are opened; nothing is unpacked.

    Raises:
        InputError: compressed, damaged, a key without image or class, twice the same key, or a name that leaves
            the archive.
    """
    members = _Members()
    try:
        with tarfile.open(path, "r:", tarinfo=_BoundedInfo) as archive:
            for member in archive:
                if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
                    _take(members, member, archive, path)
    except (tarfile.TarError, ValueError, OverflowError, OSError, MemoryError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} is not an uncompressed webdataset tar of KEY.jpg and KEY.cls: {said}") from error
    keys = sorted(members.images)
    alone = sorted(members.images.keys() ^ members.labels.keys())
    if alone or not keys:
        example = f", but {alone[0]} has only one" if alone else ""
        raise InputError(
            f"{path}: every KEY.jpg needs a KEY.cls with its class index; found {len(keys)} images{example}"
        )
    labels = np.asarray([members.labels[key] for key in keys], dtype=np.int64)
    if not members.class_names and int(labels.max()) >= MAX_CLASSES:
        raise InputError(
            f"{path}: a KEY.cls holds {labels.max()}; without {CLASS_NAMES_FILE} at most {MAX_CLASSES} classes are "
            "read, numbered from 0"
        )
    names = members.class_names or tuple(f"class {i}" for i in range(int(labels.max()) + 1))

    def read(index: int) -> bytes:
        offset, size = members.images[keys[index]]
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def decode(index: int) -> Image.Image:
        try:
            return load_image(read(index))
        except InputError as error:
            raise InputError(f"{path}, {keys[index]}: {error}") from error

    return ImageSet(
        names=tuple(keys),
        labels=_checked(labels, names, str(path)),
        class_names=names,
        open_image=decode,
        read_bytes=read,
    )


def _take(members: _Members, member: tarfile.TarInfo, archive: tarfile.TarFile, path: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path}: member {member.name!r} leaves the archive; pack it again with relative names")
    # As in webdataset, the suffix begins at the first dot: a.seg.png is not an image of a.
    stem, _, suffix = name.name.partition(".")
    key = str(name.parent / stem)
    if f".{suffix.lower()}" in SUFFIXES:
        _refuse_second(key, members.images, path)
        _check_size(member, MAX_IMAGE_BYTES, path)
        members.images[key] = member.offset_data, member.size
    elif suffix.lower() == "cls":
        _refuse_second(key, members.labels, path)
        members.labels[key] = _label(_text(member, archive, path), key)
    elif name.name == CLASS_NAMES_FILE:
        members.class_names = tuple(line.strip() for line in _text(member, archive, path).splitlines() if line.strip())


def _label(text: str, key: str) -> int:
    value = int(text) if len(text) <= MAX_LABEL_LENGTH else 1 << 31
    if not abs(value) < 1 << 31:
        raise ValueError(f"{key}.cls holds {text[:MAX_LABEL_LENGTH]!r}, expected the index of a class")
    return value


def _text(member: tarfile.TarInfo, archive: tarfile.TarFile, path: Path) -> str:
    _check_size(member, MAX_TEXT_BYTES, path)
    stream = archive.extractfile(member)
    return "" if stream is None else stream.read().decode("utf-8-sig")


def _refuse_second(key: str, known: dict[str, tuple[int, int]] | dict[str, int], path: Path) -> None:
    if key in known:
        raise InputError(f"{path}: {key} appears more than once; every image needs a key of its own")


def _check_size(member: tarfile.TarInfo, limit: int, path: Path) -> None:
    if member.size > limit:
        raise InputError(f"{path}: member {member.name} has {member.size} bytes, at most {limit >> 20} MiB are read")


def _checked(labels: npt.NDArray[np.integer], class_names: tuple[str, ...], source: str) -> npt.NDArray[np.int64]:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise InputError(
            f"{source}: labels must be between 0 and {len(class_names) - 1} ({len(class_names)} class names), "
            f"got {labels.min()} to {labels.max()}"
        )
    counts = Counter(class_names)
    repeated = next((name for name in class_names if counts[name] > 1), None)
    if repeated is not None:
        raise InputError(f"{source}: class name {repeated!r} appears more than once; every class needs its own")
    return labels.astype(np.int64)
