"""Labelled images in one file: `.npz` arrays and webdataset tars."""

import itertools
import math
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import SUFFIXES, ImageSet, load_image
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.storage import NPZ_ERRORS, beyond_unicode, one_line, open_regular
from p4q_edge.runtime.wording import number_of, one_or_many

MAX_IMAGE_BYTES = 64 << 20
MAX_RATIO = 100
MAX_LOOSE_BYTES = 512 << 20
LARGE_RATIO = 4
MAX_TEXT_BYTES = 1 << 20
MAX_CLASSES = 1 << 16
MAX_LABEL_LENGTH = 20
MAX_ARRAY_BYTES = 4 << 30
CLASS_NAMES_FILE = "classnames.txt"
MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
_BRACE_FORMS = "write e.g. shards-{000000..000099}.tar or {train,more}.tar"


def read_npz(path: Path) -> ImageSet:
    """Read uint8 `images` (N, H, W, 3) or (N, H, W), integer `labels` (N,) and `class_names`.

    Raises:
        InputError: arrays are missing, pickled or of another kind.
    """
    try:
        # Opened here, as NumPy leaves a file that it refuses open.
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
            _check_unpacked(path)
            images, labels, class_names = (_array(archive[name]) for name in ("images", "labels", "class_names"))
    except NPZ_ERRORS as error:
        raise InputError(
            f"{path} needs arrays images, labels and class_names (no pickles): {one_line(error)}"
        ) from error
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise InputError(f"{path}: images must be uint8 (N, H, W, 3) or (N, H, W), got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise InputError(
            f"{path}: labels must be integers, one for each of {number_of(len(images), 'image')}, got "
            f"{labels.dtype} {labels.shape}"
        )
    if class_names.ndim != 1 or class_names.dtype.kind != "U":
        raise InputError(f"{path}: class_names must be a list of strings, got {class_names.dtype} {class_names.shape}")
    if beyond_unicode(class_names):
        raise InputError(f"{path}: class_names hold characters that Unicode does not have. Write the file again.")
    return from_arrays(images, labels, tuple(map(str, class_names)), path.stem)


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
    """Return images that are pixels already: uint8 (N, H, W, 3) or (N, H, W)."""
    return ImageSet(
        names=tuple(f"{stem}[{i}]" for i in range(len(images))),
        labels=checked_labels(labels, class_names, stem),
        class_names=class_names,
        open_image=_ArrayImages(images).open,
        read_bytes=_ArrayImages(images).read,
    )


@dataclass(frozen=True)
class _ArrayImages:
    """Images out of an array; it can be sent to another process."""

    images: npt.NDArray[np.uint8]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def read(self, index: int) -> bytes:
        data: bytes = self.images[index].tobytes()
        return data


@dataclass(kw_only=True)
class _Members:
    """What a tar holds: where each image lies, the class index of each key, the names of the classes and their file."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    names_file: str = ""


class _BoundedInfo(tarfile.TarInfo):
    """A header of a tar whose own data, which the library reads as one piece, is bounded."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What a tar holds, in the order of its keys.

    Attributes:
        places: offset and size of each image in the file, int64 (images, 2).
        labels: int64 (images,).
        class_names: empty where it does not name them.
    """

    keys: tuple[str, ...]
    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _TarImages:
    """Reads images out of tars; it can be sent to another process."""

    paths: tuple[Path, ...]
    shard: npt.NDArray[np.int32]
    places: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def read(self, index: int) -> bytes:
        offset, size = self.places[index].tolist()
        with open_regular(self.paths[self.shard[index]]) as stream:
            stream.seek(offset)
            data: bytes = stream.read(size)
        return data

    def open(self, index: int) -> Image.Image:
        try:
            return load_image(self.read(index))
        except InputError as error:
            raise InputError(f"{self.paths[self.shard[index]]}, {self.names[index]}: {error}") from error


def read_tar(path: Path) -> ImageSet:
    """Read a webdataset shard: `KEY.jpg` with `KEY.cls` (class index) and, optionally, `classnames.txt`.

    Images stay in the file until they are opened; nothing is unpacked.

    Raises:
        InputError: compressed, damaged, a key without image or class, twice the same key, or a name that leaves
            the archive.
    """
    return read_shards([path], source=str(path))


def read_shards(paths: Sequence[Path], *, source: str) -> ImageSet:
    """Read webdataset shards as one set, in order; the images of several are named `SHARD.tar/KEY`.

    Raises:
        InputError: as of `read_tar`, or shards that name other classes.
    """
    shards = [_scan(path) for path in tracked(paths, "list shards", unit="shards")]
    labels = np.concatenate([shard.labels for shard in shards])
    known = {shard.class_names: path for path, shard in zip(paths, shards, strict=True) if shard.class_names}
    if len(known) > 1:
        first, second = list(known.values())[:2]
        raise InputError(
            f"{first} and {second} hold another {CLASS_NAMES_FILE}; shards of one set name the same classes"
        )
    names = next(iter(known), ())
    if not names and int(labels.max()) >= MAX_CLASSES:
        raise InputError(
            f"{source}: a KEY.cls holds {labels.max()}; without {CLASS_NAMES_FILE} at most {MAX_CLASSES} classes are "
            "read, numbered from 0"
        )
    names = names or tuple(f"class {i}" for i in range(int(labels.max()) + 1))
    prefixes = [f"{path.name}/" if len(paths) > 1 else "" for path in paths]
    images = _TarImages(
        paths=tuple(paths),
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards]),
        places=np.concatenate([shard.places for shard in shards]),
        names=tuple(prefix + key for prefix, shard in zip(prefixes, shards, strict=True) for key in shard.keys),
    )
    return ImageSet(
        names=images.names,
        labels=checked_labels(labels, names, source),
        class_names=names,
        open_image=images.open,
        read_bytes=images.read,
    )


def _scan(path: Path) -> _Shard:
    members = _Members()
    try:
        with open_regular(path) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_BoundedInfo) as archive:
            for member in archive:
                if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
                    _take(members, member, archive, path)
    except (tarfile.TarError, ValueError, OverflowError, OSError, MemoryError) as error:
        raise InputError(
            f"{path} is not an uncompressed webdataset tar of KEY.jpg and KEY.cls: {one_line(error)}"
        ) from error
    keys = sorted(members.images)
    alone = sorted(members.images.keys() ^ members.labels.keys())
    if alone or not keys:
        example = f", but {alone[0]} has only one" if alone else ""
        raise InputError(
            f"{path}: every KEY.jpg needs a KEY.cls with its class index; found "
            f"{number_of(len(keys), 'image')}{example}"
        )
    return _Shard(
        keys=tuple(keys),
        places=np.asarray([members.images[key] for key in keys], dtype=np.int64),
        labels=np.asarray([members.labels[key] for key in keys], dtype=np.int64),
        class_names=members.class_names,
    )


def expand_braces(source: str, *, key: str) -> list[Path]:
    """Return the paths that `shards-{000000..000099}.tar` and `{train,more}.tar` stand for, in order.

    Raises:
        UsageError: braces of another form, too many paths, one path twice, or files that do not exist.
    """
    parts: list[list[str]] = []
    rest = source
    while match := _BRACES.search(rest):
        parts += [[rest[: match.start()]], _alternatives(match[1], source, key=key)]
        rest = rest[match.end() :]
    literal = "".join(part[0] for part in parts[::2]) + rest
    if "{" in literal or "}" in literal:
        raise UsageError(f"{key}: {source} has an unmatched brace; {_BRACE_FORMS}")
    count = math.prod(len(part) for part in parts)
    if count > MAX_SHARDS:
        raise UsageError(f"{key}: {source} names {count} files; at most {MAX_SHARDS} are read")
    paths = [Path("".join(words)) for words in itertools.product(*parts, [rest])]
    if any(path.suffix.lower() != ".tar" for path in paths):
        raise UsageError(f"{key}: {source} stands for several files, which must be .tar shards")
    if len(set(paths)) < count:
        raise UsageError(f"{key}: {source} names a shard twice; name each once")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"{key}: {len(missing)} of {number_of(count, 'shard')} of {source} "
            f"{one_or_many(len(missing), 'does', 'do')} not exist, the first is {missing[0]}"
        )
    return paths


def _alternatives(text: str, source: str, *, key: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        words = text.split(",")
        if len(words) < 2 or not all(words) or ".." in text:
            raise UsageError(f"{key}: {source}: {{{text}}} is neither a range nor a list; {_BRACE_FORMS}")
        return words
    first, last = match[1], match[2]
    padded = first.startswith("0") or last.startswith("0")
    if int(first) > int(last) or (padded and len(first) != len(last) and first != "0"):
        raise UsageError(
            f"{key}: {source}: {{{text}}} must count up, with numbers of one width where they begin with 0; "
            f"{_BRACE_FORMS}"
        )
    if int(last) - int(first) >= MAX_SHARDS:
        raise UsageError(f"{key}: {source}: {{{text}}} names more than {MAX_SHARDS} files")
    width = len(first) if padded and len(first) == len(last) else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


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
        if members.names_file:
            raise InputError(
                f"{path}: {members.names_file} and {member.name} both name the classes; pack one {CLASS_NAMES_FILE}"
            )
        members.names_file = member.name
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


def checked_labels(
    labels: npt.NDArray[np.integer] | Sequence[int], class_names: tuple[str, ...], source: str
) -> npt.NDArray[np.int64]:
    """Return labels as int64, each of which names a class.

    Args:
        labels: an array of one width, or numbers of any; an array made of these might hold decimals.
        class_names: all of them.
        source: what messages call the images.

    Raises:
        InputError: one names none, or two classes have one name.
    """
    low, high = 0, -1
    if len(labels):
        ends = (labels.min(), labels.max()) if isinstance(labels, np.ndarray) else (min(labels), max(labels))
        low, high = int(ends[0]), int(ends[1])
    if len(labels) and not 0 <= low <= high < len(class_names):
        raise InputError(
            f"{source}: labels must be between 0 and {len(class_names) - 1} "
            f"({number_of(len(class_names), 'class name')}), "
            f"got {low} to {high}"
        )
    counts = Counter(class_names)
    repeated = next((name for name in class_names if counts[name] > 1), None)
    if repeated is not None:
        raise InputError(f"{source}: class name {repeated!r} appears more than once; every class needs its own")
    return np.asarray(labels, dtype=np.int64)
