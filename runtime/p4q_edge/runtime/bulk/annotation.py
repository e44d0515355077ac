"""Films with the answer drawn into each frame, through OpenCV (an optional extra)."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from p4q_edge.runtime.classification import Prediction
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import video
from p4q_edge.runtime.storage import printable, require_writable, scratch_folder, write_error
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "Arial Unicode.ttf")
"""Of the system, tried for words that Pillow's own font, which has no more than ASCII, cannot draw."""
PROBE_BYTES = 1 << 20
_GROUND, _KNOWN, _UNKNOWN = (16, 22, 20), (82, 207, 182), (243, 192, 122)
_TEXT_SHARE = 0.06
"""Height of the text as a share of the frame's."""


def require_film(path: Path, *, source: int | str, force: bool) -> None:
    """Raise before any work where a film cannot be written.

    Raises:
        UsageError: of another suffix, the file exists or its folder cannot be written, or it is the source itself.
        EnvironmentNotAbleError: OpenCV is not installed.
    """
    if path.suffix.lower() not in CODECS:
        raise UsageError(f"expected a film ending in {', '.join(CODECS)}, got {path}.")
    video.import_cv2()
    require_writable(path, force=force)
    if isinstance(source, str) and path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError(f"{path} is the film that is looked at. Name another file for the one with the answers.")


class Annotator:
    """Writes a film; when the `with` block ends, in whatever way, what was written so far is complete in its place."""

    def __init__(self, path: Path, *, fps: float) -> None:
        """Write to a path that `require_film` found good, `fps` frames a second; the first frame decides the size."""
        self._path, self._fps = path, fps
        self._stack = ExitStack()
        self._made = path
        self._writer: Any = None
        self._size, self._frames = (0, 0), 0

    def __enter__(self) -> Annotator:
        folder = self._stack.enter_context(scratch_folder(self._path.parent))
        # OpenCV chooses the container by the suffix.
        self._made = folder / f"film{self._path.suffix.lower()}"
        return self

    def write(self, frame: np.ndarray, prediction: Prediction) -> None:
        """Write a frame (H, W, 3) uint8, BGR, with its best class and score.

        Raises:
            UsageError: this OpenCV cannot write such a film.
        """
        import numpy as np

        image = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
        if self._writer is None:
            self._size = image.size
            self._writer = self._opened()
        elif image.size != self._size:  # a camera that changed its mind; OpenCV would leave such frames out
            image = image.resize(self._size)
        self._writer.write(np.ascontiguousarray(np.asarray(annotated(image, prediction))[:, :, ::-1]))
        self._frames += 1

    def _opened(self) -> Any:
        cv2 = video.import_cv2()
        code = cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
        writer = cv2.VideoWriter(os.fspath(self._made), code, self._fps, self._size)
        if not writer.isOpened():
            raise UsageError(f"OpenCV cannot write {self._path} here. Choose another suffix: {', '.join(CODECS)}.")
        return writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._writer is None:
                return
            self._writer.release()
            try:
                # OpenCV does not tell of what it could not write.
                self._made.with_name("probe").write_bytes(bytes(PROBE_BYTES))
                self._made.replace(self._path)
            except OSError as failed:
                raise write_error(self._path, failed) from failed
        logger.info("%s: %s with answers", self._path, number_of(self._frames, "frame"))


def annotated(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Return a picture with a line of text along its lower edge; the score stands first, as names may be too long."""
    image = image.copy()
    size = max(10, round(image.height * _TEXT_SHARE))
    label = printable(prediction.label)
    text = f"{prediction.score:.0%}  {label}" if prediction.known else f"unknown ({label}?)"
    top = image.height - round(1.7 * size)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, image.height), fill=_GROUND)
    colour = _KNOWN if prediction.known else _UNKNOWN
    draw.text((size // 2, top + round(0.25 * size)), text, fill=colour, font=font_of(label, size))
    return image


@lru_cache(maxsize=1024)
def font_of(words: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, or one of the system that has all characters of some words.

    Where there is none, which is said once, boxes stand for those that are missing.
    """
    own = ImageFont.load_default(size)
    if words.isascii():
        return own
    for name in FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:  # not installed
            continue
        if _has(font, words):
            return font
    _warn_of_boxes()
    return own


def _has(font: ImageFont.FreeTypeFont, words: str) -> bool:
    """Return whether none of the characters looks as one that no font has."""
    missing = bytes(font.getmask("\uffff"))
    return all(bytes(font.getmask(character)) != missing for character in set(words) - {" "})


@lru_cache(maxsize=1)
def _warn_of_boxes() -> None:
    logger.warning(
        "no font here has all characters of the class names, so that boxes stand for some in the film. Install one: "
        "sudo apt install fonts-dejavu fonts-noto-cjk"
    )
