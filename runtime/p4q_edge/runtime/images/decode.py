"""Reading images: a path, encoded bytes, a PIL image or a NumPy array becomes a decoded PIL image.

What is done with a file is what open_clip's own loaders do (`PIL.Image.open`), with these consequences:

* The EXIF orientation is left to `preprocess`, which applies it or, as open_clip does, not.
* Of an animation or a multi-page file the first frame is taken.
* 16-bit greyscale is reduced to its upper 8 bits. open_clip would saturate it to a white image.
* Alpha is dropped after resizing, palettes are expanded after (nearest-neighbour) resizing: see `preprocess`.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Union, get_args

from PIL import Image, UnidentifiedImageError, features

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.arrays import TensorLike, as_pixels, encoded_bytes, is_buffer, is_tensor
from p4q_edge.runtime.storage import not_fetched, one_line
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    import numpy as np

ColorOrder = Literal["rgb", "bgr"]
_ORDERS = get_args(ColorOrder)
ImageLike = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, Image.Image, "np.ndarray", TensorLike
]

# Vector formats are left out: Pillow hands EPS to an external interpreter.
_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
_HAS_AVIF = bool(features.check("avif")) if "avif" in features.modules else False
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(("HEIF",) if _HAS_HEIF else ()),
    *(("AVIF",) if _HAS_AVIF else ()),
)
_HEIF = dict.fromkeys((".heic", ".heif", ".hif"), "to read them: pip install 'p4q-edge-runtime[heif]'")
_AVIF = {".avif": "to read them: pip install 'pillow>=11.3'"}
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    | (_HEIF.keys() if _HAS_HEIF else set())
    | (_AVIF.keys() if _HAS_AVIF else set())
)
READABLE_WITH = {**({} if _HAS_HEIF else _HEIF), **({} if _HAS_AVIF else _AVIF)}
"""Suffixes of photographs that cannot be read here, and what to install for them."""
MAX_FILE_BYTES = 512 << 20
_ORIENTATION_TAG = 0x0112
# Pillow's own warning threshold: 256 MiB of RGB.
MAX_PIXELS = 89_478_485
MAX_ASPECT = 200
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
    draft: tuple[int, int] | None = None,
) -> Image.Image:
    """Return a decoded PIL image of any mode that can be converted to RGB.

    Args:
        image: a path; the bytes of an image file, or an open binary file of them; a PIL image; an array (H, W, 3) or
            (H, W) uint8; or a tensor of torch, (3, H, W) or (H, W) uint8.
        color: the channel order of an array or tensor.
        draft: a (width, height) down to which a JPEG decoder may skip detail; None decodes all of it.

    Raises:
        InputError: the image is missing, damaged, of an unknown format, too large, or an array of another kind.
        UsageError: there is no such order of channels.
    """
    if color not in _ORDERS:
        raise UsageError(f"color: expected {' or '.join(map(repr, _ORDERS))}, got {color!r}")
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        _check_file(path)
        return _decode(path, name=str(path), draft=draft)
    if is_buffer(image) and not isinstance(image, Image.Image):
        data = encoded_bytes(image, limit=MAX_FILE_BYTES)
        return _decode(io.BytesIO(data), name=f"image of {number_of(len(data), 'byte')}", draft=draft)
    if isinstance(image, Image.Image):
        return _decode_pil(image)
    return _from_array(image, color=color)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where it says nothing or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (*_DECODER_ERRORS, UserWarning):
        # Damaged notes beside intact pixels are common; the pixels are used as they are.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


@functools.cache
def _register_heif() -> None:
    """Let Pillow open HEIC, where the optional package is installed."""
    if _HAS_HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _decode(source: Path | io.BytesIO, *, name: str, draft: tuple[int, int] | None) -> Image.Image:
    _register_heif()
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_pixels(*image.size, name=name)
            if draft is not None:
                image.draft(None, draft)
            image.load()
            # Read while the file is open, and kept with the image; see `orientation_of`.
            orientation_of(image)
            return image
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory. Use a smaller copy of it.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not one of {', '.join(FORMATS)}. Save it as JPEG or PNG.") from error
    except _DECODER_ERRORS as error:
        raise InputError(
            f"{name} cannot be decoded as {'/'.join(FORMATS)}: {one_line(error)}. Save it again as JPEG or PNG."
        ) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()  # once: a file may be gone a moment later
    except (OSError, ValueError) as error:  # the latter for names that no file can have
        missing = f"{str(path)[:200]!r} does not exist. Check the path of the image."
        raise InputError(not_fetched(path) or missing) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder, not an image. Name its files, or pass the folder to classify.")
    if stat.S_ISFIFO(status.st_mode):
        raise InputError(f"{path} is a pipe, which may never be written to. Name a file, or pass its bytes.")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Copy it again, or remove it.")
    if status.st_size > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes. Use a smaller copy of it.")


def _check_pixels(width: int, height: int, *, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {MAX_PIXELS} are decoded. Use a smaller copy of it."
        )
    # Its shortest side becomes that of the input, and the other one as many times as long, before a square is cut out.
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name} has {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other. Cut out the "
            "part that matters."
        )


def _decode_pil(image: Image.Image) -> Image.Image:
    _check_pixels(*image.size, name="the PIL image")
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise InputError(f"the PIL image cannot be decoded: {one_line(error)}. Open it again.") from error
    return image


def _from_array(array: object, *, color: ColorOrder) -> Image.Image:
    import numpy as np

    if not isinstance(array, np.ndarray) and not is_tensor(array):
        raise TypeError(
            f"expected a path, bytes, a file object, a PIL image, an array or a tensor; got {type(array).__name__}"
        )
    pixels = as_pixels(array)
    _check_pixels(pixels.shape[1], pixels.shape[0], name="the array")
    if color == "bgr" and pixels.ndim == 3:
        pixels = pixels[:, :, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))
