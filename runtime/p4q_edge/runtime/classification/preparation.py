"""From images of any kind to the engine's input, some at a time, decoded by threads ahead of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.classification.options import RuntimeOptions
from p4q_edge.runtime.classification.predictions import Failure
from p4q_edge.runtime.errors import InputError
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

Images = ImageLike | Iterable[ImageLike]
Prepared = tuple[str | None, "np.ndarray"]
"""Where an image came from, and its pixels (3, H, W) uint8."""


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
        self, images: Images, *, color: ColorOrder, on_error: Literal["raise", "yield"] = "raise"
    ) -> Iterator[list[Prepared | Failure]]:
        """Yield up to `batch_size` images at a time: source and pixels, or what is wrong with one."""

        def prepare(image: ImageLike) -> Prepared | Failure:
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
