"""From what a user passes to a classifier to a stream of single images, decoded by threads ahead of their use."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.arrays import is_buffer, is_tensor
from p4q_edge.runtime.images.decode import SUFFIXES, ImageLike
from p4q_edge.runtime.images.listing import LeftOut, image_files
from p4q_edge.runtime.storage import not_fetched

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_single(images: object) -> bool:
    """Return whether an argument is one image: bytes or an open file of them, PIL, an array, or the path of a file."""
    if isinstance(images, Image.Image) or is_buffer(images) or hasattr(images, "__array_interface__"):
        return True
    if is_tensor(images):
        return True
    return isinstance(images, (str, os.PathLike)) and not _is_many(images)


def expand(images: object) -> Iterator[ImageLike]:
    """Yield single images: the files of a folder (recursively, sorted) or of a glob, or the items of an iterable.

    Raises:
        InputError: a folder or glob without images.
        TypeError: neither an image nor an iterable of images.
    """
    if isinstance(images, (str, os.PathLike)) and _is_many(images):
        yield from _files(images)
    elif is_single(images):
        yield images  # type: ignore[misc]
    else:
        if not isinstance(images, Iterable):
            raise TypeError(
                f"expected a path, bytes, a file object, a PIL image, an array or a tensor; got {type(images).__name__}"
            )
        for item in images:
            yield from expand(item)


def source_of(image: object) -> str | None:
    """Return the path of an image that was given as one."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def mapped_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int
) -> Iterator[_Result]:
    """Yield `function(item)` in order, computed by threads up to `ahead` items before they are asked for."""
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="p4q-edge-decode") as pool:
        pending: deque[Future[_Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield lists of up to `size` items."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_many(path: str | os.PathLike[str]) -> bool:
    # os.path, unlike Path, answers False for names that no file can have.
    if os.path.isdir(path):  # noqa: PTH112
        return True
    # An address may have a question mark, and is no pattern.
    return not os.path.exists(path) and glob.has_magic(os.fspath(path)) and not not_fetched(path)  # noqa: PTH110


def _files(path: str | os.PathLike[str]) -> list[ImageLike]:
    if Path(path).is_dir():
        left_out = LeftOut()
        images = [str(file) for file in image_files(Path(path), left_out)]
        left_out.log(os.fspath(path))
    else:
        found = glob.glob(os.fspath(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        images = sorted(name for name in found if Path(name).suffix.lower() in SUFFIXES and Path(name).is_file())
    if not images:
        raise InputError(
            f"{os.fspath(path)} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}. "
            "Check the folder."
        )
    return list(images)
