"""Reading images: a path, encoded bytes, a PIL image or a NumPy array becomes a decoded PIL image.

What is done with a file is what open_clip's own loaders do (`PIL.Image.open`), with these consequences:

* The EXIF orientation is not applied, as there; `orient=True` applies it.
* Of an animation or a multi-page file the first frame is taken.
* 16-bit greyscale is reduced to its upper 8 bits. open_clip would saturate it to a white image.
* Alpha is dropped after resizing, palettes are expanded after (nearest-neighbour) resizing: see `preprocess`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

from PIL import Image, ImageOps, UnidentifiedImageError

from p4q_edge.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np

ColorOrder = Literal["rgb", "bgr"]
ImageLike = Union[str, "os.PathLike[str]", bytes, Image.Image, "np.ndarray"]

# Vector formats are left out: Pillow hands EPS to an external interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_FILE_BYTES = 512 << 20
# Pillow's own warning threshold: 256 MiB of RGB.
MAX_PIXELS = 89_478_485
# Pillow's decoders have no common error class; these are what its file plugins raise on damaged bytes.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def load_image(
    image: ImageLike,
    *,
    color: ColorOrder = "rgb",
    orient: bool = False,
    draft: tuple[int, int] | None = None,
) -> Image.Image:
    """Return a decoded PIL image of any mode that can be converted to RGB.

    Args:
        image: a path, the bytes of an image file, a PIL image, or an array (H, W, 3) or (H, W) uint8.
        color: the channel order of an array.
        orient: apply the EXIF orientation of a file, which open_clip's loader does not.
        draft: a (width, height) down to which a JPEG decoder may skip detail; None decodes all of it.

    Raises:
        InputError: the image is missing, damaged, of an unknown format, too large, or an array of another kind.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        _check_file(path)
        return _decode(path, name=str(path), orient=orient, draft=draft)
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), name=f"image of {len(image)} bytes", orient=orient, draft=draft)
    if isinstance(image, Image.Image):
        return _decode_pil(image)
    return _from_array(image, color=color)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and below, sorted, without hidden ones such as macOS's `._photo.jpg`."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not _is_hidden(path.relative_to(folder)) and path.is_file())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _decode(source: Path | io.BytesIO, *, name: str, orient: bool, draft: tuple[int, int] | None) -> Image.Image:
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_pixels(*image.size, name=name)
            if draft is not None:
                image.draft(None, draft)
            image.load()
            return ImageOps.exif_transpose(image) if orient else image
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory. Use a smaller copy of it.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is none of {', '.join(FORMATS)}. Save it as JPEG or PNG.") from error
    except _DECODER_ERRORS as error:
        raise InputError(
            f"{name} cannot be decoded as {'/'.join(FORMATS)}: {_one_line(error)}. Save it again as JPEG or PNG."
        ) from error


def _check_file(path: Path) -> None:
    # os.path, unlike Path, answers False for names that no file can have.
    if os.path.isdir(path):  # noqa: PTH112
        raise InputError(f"{path} is a folder, not an image. Name its files, or pass the folder to classify.")
    if not os.path.exists(path):  # noqa: PTH110
        raise InputError(f"{str(path)[:200]!r} does not exist. Check the path of the image.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes. Use a smaller copy of it.")


def _check_pixels(width: int, height: int, *, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {MAX_PIXELS} are decoded. Use a smaller copy of it."
        )


def _decode_pil(image: Image.Image) -> Image.Image:
    _check_pixels(*image.size, name="the PIL image")
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise InputError(f"the PIL image cannot be decoded: {_one_line(error)}. Open it again.") from error
    return image


def _from_array(array: np.ndarray, *, color: ColorOrder) -> Image.Image:
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected a path, bytes, a PIL image or a NumPy array; got {type(array).__name__}")
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise InputError(
            f"expected an array (H, W, 3) or (H, W) of uint8; got {array.shape} of {array.dtype}. "
            "Convert it, e.g. `(array * 255).round().astype('uint8')` for values between 0 and 1."
        )
    _check_pixels(array.shape[1], array.shape[0], name="the array")
    if color == "bgr" and not grey:
        array = array[:, :, ::-1]
    return Image.fromarray(np.ascontiguousarray(array))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
