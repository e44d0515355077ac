"""From images of any kind to the engine's input, some at a time, decoded by threads ahead of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.choices import CpuBackend, Fast
from p4q_edge.runtime.classification.predictions import Failure
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import (
    ColorOrder,
    ImageLike,
    PreprocessSpec,
    batched,
    draft_size,
    expand,
    is_single,
    load_image,
    mapped_ahead,
    preprocess,
    source_of,
)

if TYPE_CHECKING:
    import numpy as np

ImageInputs = ImageLike | Iterable[ImageLike]
OnError = Literal["raise", "yield"]
"""What an image does that cannot be used: end everything, or be a `Failure` among the others."""
PreparedImage = tuple[str | None, "np.ndarray"]
"""Where an image came from, and its pixels (3, H, W) uint8."""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a classifier uses the machine.

    Attributes:
        threads: threads of a CPU engine; None takes one a core that this process may use.
        backend: another library for CPUs than the one that the engine was built for; it runs the same file.
        decode_threads: threads that decode and resize images ahead of the engine.
        batch_size: most images in one run of the engine; bounds the memory.
        fast: an inexact, faster way to shrink large images; None is exact.
        orient: apply the EXIF orientation of images; None does what the engine's card says, which is what the model
            was learned with. open_clip's loader never applies it.
        check: run the golden samples when an engine is first loaded on a machine, or never.
    """

    threads: int | None = None
    backend: CpuBackend | None = None
    decode_threads: int = 2
    batch_size: int = 8
    fast: Fast | None = None
    orient: bool | None = None
    check: Literal["first", "never"] = "first"

    def __post_init__(self) -> None:
        if self.decode_threads < 1 or self.batch_size < 1:
            raise UsageError("decode_threads and batch_size must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images become the input of one engine.

    Attributes:
        spec: size, filter, resize mode and orientation.
        options: threads, size of batches, and how exact large images are shrunk.
    """

    spec: PreprocessSpec
    options: RuntimeOptions

    @classmethod
    def of(cls, card: Card, options: RuntimeOptions) -> Preparation:
        """Return what a card asks for, as far as the options do not say otherwise."""
        spec = card.preprocess
        if options.orient is not None:
            spec = msgspec.structs.replace(spec, orient=options.orient)
        return cls(spec=spec, options=options)

    def pixels(self, image: ImageLike, *, color: ColorOrder = "rgb") -> np.ndarray:
        """Return one image as (3, H, W) uint8, RGB.

        Raises:
            InputError: the image cannot be used.
        """
        fast = self.options.fast
        draft = draft_size(self.spec) if fast == "draft" else None
        return preprocess(load_image(image, color=color, draft=draft), self.spec, fast=fast)

    def batches(
        self, images: ImageInputs, *, color: ColorOrder, on_error: OnError = "raise"
    ) -> Iterator[list[PreparedImage | Failure]]:
        """Yield up to `batch_size` images at a time: source and pixels, or what is wrong with one.

        Raises:
            InputError: an image cannot be used, and `on_error` is `raise`.
            UsageError: `on_error` or `color` is none of its choices.
        """
        if on_error not in get_args(OnError):
            raise UsageError(f"on_error: expected 'raise' or 'yield', got {on_error!r}")

        def prepare(image: ImageLike) -> PreparedImage | Failure:
            try:
                return source_of(image), self.pixels(image, color=color)
            except InputError as error:
                if on_error == "raise":
                    raise
                return Failure(error=error, source=source_of(image))

        if is_single(images):
            yield [prepare(images)]  # type: ignore[arg-type]
            return
        size, threads = self.options.batch_size, self.options.decode_threads
        prepared = mapped_ahead(prepare, expand(images), threads=threads, ahead=2 * size + threads)
        yield from batched(prepared, size)
