"""Images are decoded before the work that would end at the first damaged one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from p4q_edge.runtime.errors import InputError, P4QEdgeError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.stage import Images
from p4q_edge.runtime.wording import number_of, one_or_many

MAX_NAMED = 10
"""Of many images that cannot be read."""
THREADS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ToDecode:
    """Some images of a set.

    Attributes:
        decode: takes the index of one, in several threads at once, and raises why it cannot be read.
        rows: the indices.
        source: what messages call them.
    """

    decode: Callable[[int], object]
    rows: Sequence[int]
    source: str = ""

    @classmethod
    def of_set(cls, images: ImageSet) -> ToDecode:
        """Take all images of a set."""
        return cls(decode=images.open_image, rows=range(len(images)))

    @classmethod
    def of_pixels(cls, pixels: Images, rows: Sequence[int] | None = None, *, source: str = "") -> ToDecode:
        """Take images, all without `rows`; `Pixels` keep those that fit into memory."""
        taken = range(len(pixels)) if rows is None else rows
        return cls(decode=lambda row: pixels[slice(row, row + 1)], rows=taken, source=source)


def damaged(*sets: ToDecode) -> list[dict[int, str]]:
    """Return of each set, by the index, what is wrong with its images that cannot be decoded; one bar is for all."""

    def problem(image: tuple[ToDecode, int]) -> str:
        some, row = image
        try:
            some.decode(row)
        except P4QEdgeError as error:
            return str(error)
        return ""

    every = [(some, row) for some in sets for row in some.rows]
    with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="p4q-edge-check") as pool:
        found = iter([*tracked(pool.map(problem, every), "check images", total=len(every))])
    return [{row: said for row, said in zip(some.rows, found, strict=False) if said} for some in sets]


def require_decodable(*sets: ToDecode) -> None:
    """Refuse images of which some are damaged.

    Raises:
        InputError: some cannot be read; the message names the first few of each set, and how many there are.
    """
    told = [_cannot_be_read(some, found) for some, found in zip(sets, damaged(*sets), strict=True) if found]
    if told:
        raise InputError(" ".join(told))


def _cannot_be_read(images: ToDecode, found: Mapping[int, str]) -> str:
    problems, them = [problem.rstrip(".") for problem in found.values()], one_or_many(len(found), "it", "them")
    more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
    return (
        f"{images.source}: {len(problems)} of {number_of(len(images.rows), 'image')} cannot be read: "
        f"{'; '.join(problems[:MAX_NAMED])}{more}. Replace {them}, or take {them} out."
    )
