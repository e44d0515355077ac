"""Readers of labelled images: class folders, tables, ``.npz`` arrays, webdataset tars, the demo's digits."""

import csv
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from p4q_edge.data import ImageSet, Split, make_split
from p4q_edge.recipe import DEMO_DATA, DataSection
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import SUFFIXES, load_image

TABLE_DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_TAR_MEMBER_BYTES = 64 << 20


def read_split(section: DataSection, *, seed: int) -> Split:
    """Open what a recipe's [data] names and draw the few-shot images.

    Raises:
        UsageError: a path does not exist or has an unknown kind.
        InputError: the images or class names cannot be used.
    """
    train = read_images(section.train, key="data.train")
    names = read_words(section.class_names, key="data.class_names")
    if names:
        train = train.with_class_names(names)
    test = read_images(section.test, key="data.test") if section.test else None
    return make_split(train, test, shots=section.shots, seed=seed, test_limit=section.test_limit)


def read_images(source: str, *, key: str = "--data") -> ImageSet:
    """Open a set of labelled images by the kind of its path."""
    if source == DEMO_DATA:
        return _read_demo()
    path = Path(source)
    if not path.exists():
        raise UsageError(f"{key}: {source} does not exist; name a folder of class folders, a .csv, .tsv, .npz or .tar")
    if path.is_dir():
        return _read_folder(path)
    readers: dict[str, Callable[[Path], ImageSet]] = {".npz": _read_npz, ".tar": _read_tar}
    readers |= dict.fromkeys(TABLE_DELIMITERS, _read_table)
    if path.suffix not in readers:
        raise UsageError(
            f"{key}: {source} has suffix {path.suffix!r}; "
            f"expected a folder, {', '.join(sorted(readers))} or {DEMO_DATA}"
        )
    return readers[path.suffix](path)


def read_words(words: Sequence[str] | str, *, key: str) -> tuple[str, ...]:
    """Class names or templates: given in place, or one a line in a ``.txt``, or a list in a ``.json`` file.

    Raises:
        UsageError: the file does not exist or has another suffix.
        InputError: it is empty, or names something twice.
    """
    if not isinstance(words, str):
        return _checked_words(tuple(words), key)
    if not words:
        return ()
    path = Path(words)
    if not path.is_file() or path.suffix not in (".txt", ".json"):
        raise UsageError(f"{key}: expected a list, or an existing .txt or .json file; got {words!r}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        found = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    else:
        found = _json_words(text, words)
    if not found:
        raise InputError(f"{key}: {words} names nothing; write one name a line")
    return _checked_words(found, key)


def read_class_prompts(path: str) -> dict[str, tuple[str, ...]]:
    """Prompts of each class from a ``.json`` file: ``{"class name": ["prompt", ...]}``."""
    if not path:
        return {}
    if not Path(path).is_file():
        raise UsageError(f"data.class_prompts: {path} does not exist")
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): tuple(map(str, prompts)) for name, prompts in document.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f'data.class_prompts: {path} is not of the form {{"class name": ["prompt", ...]}}: {error}'
        ) from error


def _json_words(text: str, source: str) -> tuple[str, ...]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, list) or not all(isinstance(word, str) for word in document):
        raise InputError(f'{source} must hold a list of strings such as ["cat", "dog"]')
    return tuple(document)


def _checked_words(words: tuple[str, ...], key: str) -> tuple[str, ...]:
    repeated = sorted({word for word in words if words.count(word) > 1}) if len(set(words)) < len(words) else []
    if repeated:
        raise InputError(f"{key}: {repeated[0]!r} stands there more than once; every entry must differ")
    return words


def _from_paths(paths: list[Path], labels: list[int], class_names: Sequence[str], root: Path) -> ImageSet:
    return ImageSet(
        names=tuple(str(path.relative_to(root)) if path.is_relative_to(root) else path.name for path in paths),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        open_image=lambda i: load_image(paths[i]),
        read_bytes=lambda i: paths[i].read_bytes(),
    )


def _read_folder(root: Path) -> ImageSet:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise InputError(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg, one folder a class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"class folder {folder} has no images ({', '.join(sorted(SUFFIXES))}); fill or remove it")
        paths += found
        labels += [label] * len(found)
    return _from_paths(paths, labels, [folder.name for folder in folders], root)


def _read_table(path: Path) -> ImageSet:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.reader(stream, delimiter=TABLE_DELIMITERS[path.suffix]) if row]
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["path", "label"]:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path} has no rows; expected lines of path{TABLE_DELIMITERS[path.suffix]}label")
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None:
        raise InputError(f"{path}, row {short}: expected path and label, got {rows[short - 1]!r}")
    class_names = sorted({row[1].strip() for row in rows})
    paths = [path.parent / row[0].strip() for row in rows]
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise InputError(f"{path} names {missing}, which does not exist; paths are relative to the table's folder")
    return _from_paths(paths, [class_names.index(row[1].strip()) for row in rows], class_names, path.parent)


def _read_npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels, class_names = archive["images"], archive["labels"], archive["class_names"]
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} needs arrays images, labels and class_names (no pickles): {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise InputError(
            f"{path}: images must be uint8 (N, H, W, 3) or (N, H, W) with one label each, "
            f"got {images.dtype} {images.shape} and {len(labels)} labels"
        )
    return _from_arrays(images, labels, tuple(map(str, class_names)), path.stem)


def _from_arrays(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], stem: str) -> ImageSet:
    labels = np.asarray(labels, dtype=np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise InputError(f"{stem}: labels must be between 0 and {len(class_names) - 1}, got up to {labels.max()}")
    return ImageSet(
        names=tuple(f"{stem}[{i}]" for i in range(len(images))),
        labels=labels,
        class_names=class_names,
        open_image=lambda i: Image.fromarray(images[i]),
        read_bytes=lambda i: images[i].tobytes(),
    )


def _read_tar(path: Path) -> ImageSet:
    """A webdataset shard: ``KEY.jpg`` with ``KEY.cls`` (class index) and, optionally, ``classnames.txt``."""
    blobs: dict[str, bytes] = {}
    labels: dict[str, int] = {}
    class_names: tuple[str, ...] = ()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.size > MAX_TAR_MEMBER_BYTES:
                    raise InputError(f"{path}: member {member.name} has {member.size} bytes, at most 64 MiB are read")
                stream = archive.extractfile(member)
                data = b"" if stream is None else stream.read()
                key, dot, suffix = member.name.rpartition(".")
                if dot + suffix.lower() in SUFFIXES:
                    blobs[key] = data
                elif suffix == "cls":
                    labels[key] = int(data)
                elif Path(member.name).name == "classnames.txt":
                    class_names = tuple(data.decode().splitlines())
    except (tarfile.TarError, ValueError) as error:
        raise InputError(f"{path} is not a webdataset tar of KEY.jpg and KEY.cls: {error}") from error
    keys = sorted(blobs)
    if not keys or any(key not in labels for key in keys):
        raise InputError(f"{path}: every KEY.jpg needs a KEY.cls with its class index; found {len(keys)} images")
    count = max(labels.values()) + 1
    return ImageSet(
        names=tuple(keys),
        labels=np.asarray([labels[key] for key in keys], dtype=np.int64),
        class_names=class_names or tuple(f"class {i}" for i in range(count)),
        open_image=lambda i: load_image(blobs[keys[i]]),
        read_bytes=lambda i: blobs[keys[i]],
    )


def _read_demo() -> ImageSet:
    from p4q_edge.demo import demo_images

    images, labels, class_names = demo_images()
    return _from_arrays(np.stack([np.asarray(image) for image in images]), labels, tuple(class_names), "digits")
