"""Resize and crop an image exactly as open_clip's evaluation transform does, up to its conversion to float.

Casting and normalization are in the engine's graph. The steps and their order are those of open_clip 3.3
(`transform.py`: `image_transform`): resize in the image's own mode, crop or pad, then convert to RGB. Hence a
palette image is resized by nearest neighbour and alpha is premultiplied while resizing, as there.

One step comes before: the EXIF orientation is applied where the specification says so, which open_clip's loader never
does. Phones store portraits lying on their side with such a note.

Two opt-in speed-ups decode or resize less than all pixels and are not exact: see `Fast`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from PIL import Image, ImageOps

from p4q_edge.runtime.choices import Fast
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.decode import orientation_of

if TYPE_CHECKING:
    import numpy as np

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
MAX_SIDE = 4096
# A long thin picture is enlarged along its long side before it is cropped; this bounds the memory for it.
MAX_RESIZED_PIXELS = 1 << 26
REDUCING_GAP = 2.0
# Numbers of the EXIF standard (CIPA DC-008, 4.6.4): where row 0 and column 0 lie in the scene.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class PreprocessSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures become the engine's input: open_clip's `preprocess_cfg`.

    Attributes:
        size: (height, width) of the input in pixels.
        mean: subtracted from each channel after division by 255; applied inside the graph.
        std: divides each channel; applied inside the graph.
        interpolation: filter of the resize.
        resize_mode: `shortest` side to size then centre crop; `longest` side then pad; `squash` to size.
        fill_color: grey value of the padding of `longest`, 0 to 255.
        orient: apply the EXIF orientation first. Records that do not say were made without.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0
    orient: bool = False

    def __post_init__(self) -> None:
        if not all(0 < side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size must be between 1 and {MAX_SIDE} pixels, got {self.size}")
        if not all(1e-6 <= value <= 1e3 for value in self.std):
            raise ValueError(f"std must be positive and at most 1000, got {self.std}")
        if not all(abs(value) <= 1e3 for value in self.mean):
            raise ValueError(f"mean must be within 1000 of 0, got {self.mean}")
        if not 0 <= self.fill_color <= 255:
            raise ValueError(f"fill_color must be between 0 and 255, got {self.fill_color}")


def preprocess(image: Image.Image, spec: PreprocessSpec, *, fast: Fast | None = None) -> np.ndarray:
    """Return one image as the engine takes it: (3, H, W) uint8, RGB.

    Bit-equal to open_clip's evaluation transform before `ToTensor` of the upright image (of the image as stored
    without `spec.orient`), except for 16-bit greyscale, of which the upper 8 bits are taken first.

    Args:
        image: a decoded image of any mode that Pillow can convert to RGB.
        spec: size, filter and resize mode.
        fast: an inexact speed-up, or None.

    Raises:
        InputError: the image cannot be converted to RGB, or is too elongated to be resized.
    """
    import numpy as np

    try:
        picture = _as_eight_bit(_upright(image) if spec.orient else image)
        height, width = resized_size(picture.size[::-1], spec)
        picture = _resize(picture, (width, height), spec, reducing_gap=None if fast is None else REDUCING_GAP)
        picture = _crop_or_pad(picture, spec).convert("RGB")
    except ValueError as error:
        raise InputError(
            f"an image of mode {image.mode} cannot be converted to RGB: {error}. Convert it to 8-bit RGB first."
        ) from error
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))  # (3, H, W)


def draft_size(spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (width, height) below which `fast="draft"` must not decode."""
    height, width = (max(spec.size),) * 2 if spec.orient else spec.size  # before it is turned
    return int(width * REDUCING_GAP), int(height * REDUCING_GAP)


def resized_size(source: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (height, width) to which a picture of (height, width) `source` is resized before the crop.

    Raises:
        InputError: one side would become 0, or the picture would become too large.
    """
    height, width = source
    target_height, target_width = spec.size
    if spec.resize_mode == "squash":
        return spec.size
    if spec.resize_mode == "shortest" and target_height == target_width:
        # torchvision's Resize with one number truncates; open_clip's own ratio below rounds.
        if width <= height:
            resized = (int(target_width * height / width), target_width)
        else:
            resized = (target_height, int(target_height * width / height))
    else:
        ratios = (height / target_height, width / target_width)
        ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
        resized = (round(height / ratio), round(width / ratio))
    if min(resized) < 1 or resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise InputError(
            f"a picture of {width} x {height} is too elongated: it would be resized to {resized[1]} x {resized[0]}. "
            "Crop it first."
        )
    return resized


def _resize(
    image: Image.Image, size: tuple[int, int], spec: PreprocessSpec, *, reducing_gap: float | None
) -> Image.Image:
    if image.size == size:
        return image
    height, width = spec.size
    # open_clip passes no filter for inputs that are not square, so that they are always resized bicubically.
    always_bicubic = spec.resize_mode == "shortest" and height != width
    name = "bicubic" if always_bicubic else spec.interpolation
    return image.resize(size, _FILTERS[name], reducing_gap=reducing_gap)


def _crop_or_pad(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    height, width = spec.size
    missing_width, missing_height = max(0, width - image.width), max(0, height - image.height)
    if missing_width or missing_height:
        fill = spec.fill_color if spec.resize_mode == "longest" else 0
        image = _pad(image, missing_width, missing_height, fill=fill)
    top = round((image.height - height) / 2.0)
    left = round((image.width - width) / 2.0)
    if (top, left) == (0, 0) and image.size == (width, height):
        return image
    return image.crop((left, top, left + width, top + height))


def _pad(image: Image.Image, missing_width: int, missing_height: int, *, fill: int) -> Image.Image:
    bands = len(image.getbands())
    border = (
        missing_width // 2,
        missing_height // 2,
        (missing_width + 1) // 2,
        (missing_height + 1) // 2,
    )
    padded = ImageOps.expand(image, border=border, fill=fill if bands == 1 else (fill,) * bands)
    if image.mode == "P":
        # As torchvision does: the border gets the palette's entry number `fill`.
        padded.putpalette(image.getpalette() or [])
    return padded


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def _as_eight_bit(image: Image.Image) -> Image.Image:
    """Return 16-bit greyscale reduced to its upper 8 bits, and any other image as it is."""
    import numpy as np

    if image.mode == "F":
        raise ValueError("its values have no known range")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its values exceed 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
