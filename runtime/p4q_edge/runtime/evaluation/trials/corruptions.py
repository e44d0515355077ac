"""The images of a validation made worse, in four kinds and three strengths, and what that costs each stage.

The pixels that an engine gets are changed, behind resize and crop, so that one strength means the same for every model.
Each image is decided by the seed and its own place alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.stage import Images, Stage
from p4q_edge.runtime.statistics import Estimate, metrics

CorruptionKind: TypeAlias = Literal["noise", "blur", "jpeg", "dark"]
PixelArray: TypeAlias = npt.NDArray[np.uint8]
STRENGTHS: Mapping[CorruptionKind, tuple[float, float, float]] = {
    "noise": (8.0, 20.0, 45.0),
    "blur": (0.5, 1.25, 3.0),
    "jpeg": (60.0, 25.0, 8.0),
    "dark": (0.6, 0.35, 0.15),
}
"""Of each kind, mild to strong, chosen before any model was measured: deviation of the noise, of 255; radius of the
blur in percent of the shorter side; quality of the file; share of the light."""
UNITS: Mapping[CorruptionKind, str] = {
    "noise": "of 255",
    "blur": "% of the side",
    "jpeg": "quality",
    "dark": "of the light",
}
MAX_IMAGES = 500
"""Most images that are made worse, drawn with the seed: twelve times as many run through two stages."""


@dataclass(frozen=True, kw_only=True)
class CorruptionRow:
    """Accuracy on images of one kind and strength of corruption.

    Attributes:
        kind: `none`, `noise`, `blur`, `jpeg` or `dark`.
        strength: 1 to 3, mild to strong; 0 of the images as they are.
        amount: in the unit of the kind.
        unit: in words.
        reference: the stage that the engine is compared with; null where none can run here.
        reference_top1, engine_top1: on the same n images.
        difference: engine minus reference, a share of images.
    """

    kind: str
    strength: int
    amount: float
    unit: str
    reference: str | None
    reference_top1: Estimate | None
    engine_top1: Estimate
    difference: Estimate | None


class Corrupted:
    """Images made worse when they are asked for; slices are uint8 (n, 3, H, W)."""

    def __init__(self, images: Images, kind: CorruptionKind, amount: float, *, seed: int) -> None:
        """Take images, the kind and strength, and what the noise is drawn with."""
        self._images, self._kind, self._amount, self._seed = images, kind, amount, seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> PixelArray:
        wanted = range(*rows.indices(len(self)))
        change = CHANGES[self._kind]
        pairs = zip(wanted, self._images[rows], strict=True)
        return np.stack([change(image, self._amount, (self._seed, place)) for place, image in pairs])


def add_noise(image: PixelArray, amount: float, seed: tuple[int, int]) -> PixelArray:
    """Add Gaussian noise of this deviation to each value of uint8 (3, H, W)."""
    noise = np.random.default_rng(seed).normal(0.0, amount, image.shape)
    worse: PixelArray = np.rint(image + noise).clip(0, 255).astype(np.uint8)
    return worse


def blur(image: PixelArray, amount: float, seed: tuple[int, int]) -> PixelArray:
    """Blur uint8 (3, H, W) with a Gaussian whose deviation is this many percent of the shorter side."""
    radius = amount / 100 * min(image.shape[1:])
    return _pixels(_picture(image).filter(ImageFilter.GaussianBlur(radius)))


def compress(image: PixelArray, amount: float, seed: tuple[int, int]) -> PixelArray:
    """Store uint8 (3, H, W) as a JPEG file of this quality, and read it again."""
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=round(amount))
    with Image.open(file) as found:
        return _pixels(found.convert("RGB"))


def darken(image: PixelArray, amount: float, seed: tuple[int, int]) -> PixelArray:
    """Leave this share of each value of uint8 (3, H, W), as a camera with too short an exposure."""
    worse: PixelArray = np.rint(image * amount).astype(np.uint8)
    return worse


CHANGES: Mapping[CorruptionKind, Callable[[PixelArray, float, tuple[int, int]], PixelArray]] = {
    "noise": add_noise,
    "blur": blur,
    "jpeg": compress,
    "dark": darken,
}


def _picture(image: PixelArray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _pixels(picture: Image.Image) -> PixelArray:
    return np.asarray(picture, np.uint8).transpose(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The reference, where there is one, and the engine behind it, by name; and how images run through them."""

    stages: Mapping[str, Stage]
    answers: Callable[[Stage, Images, str], npt.NDArray[np.int64]]
    """Class index of each image (n,) by one stage, given what the progress is called."""


def corruption_rows(
    compared: Compared, images: Images, labels: npt.NDArray[np.int64], *, seed: int
) -> tuple[CorruptionRow, ...]:
    """Return what each corruption costs the engine, the last of both stages, and its reference.

    Args:
        compared: the reference and the engine.
        images: uint8 (n, 3, H, W) slices, as they are.
        labels: (n,).
        seed: of the noise, and of the intervals.
    """
    generator = np.random.default_rng(seed)
    plan: list[tuple[str, int, float, str, Images]] = [("none", 0, 0.0, "", images)]
    for kind, amounts in STRENGTHS.items():
        plan += [
            (kind, strength, amount, UNITS[kind], Corrupted(images, kind, amount, seed=seed))
            for strength, amount in enumerate(amounts, 1)
        ]
    rows = []
    for kind_name, strength, amount, unit, changed in tracked(plan, "validate, corruptions"):
        correct = {
            name: compared.answers(stage, changed, f"{kind_name} {strength}, {name}") == labels
            for name, stage in compared.stages.items()
        }
        *others, now = correct.values()
        before = others[0] if others else None
        rows.append(
            CorruptionRow(
                kind=kind_name,
                strength=strength,
                amount=amount,
                unit=unit,
                reference=None if before is None else next(iter(correct)),
                reference_top1=None if before is None else metrics.proportion(before),
                engine_top1=metrics.proportion(now),
                difference=None if before is None else metrics.paired_difference(before, now, generator=generator),
            )
        )
    return tuple(rows)
