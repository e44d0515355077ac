"""Films with the answer drawn into each frame, through OpenCV (an optional extra)."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from p4q_edge.runtime.classification import Prediction
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import video
from p4q_edge.runtime.storage import require_writable, temporary_path

if TYPE_CHECKING:
    import numpy as np

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
_GROUND, _KNOWN, _UNKNOWN = (16, 22, 20), (82, 207, 182), (243, 192, 122)
_TEXT_SHARE = 0.06
"""Height of the text as a share of the frame's."""


def require_film(path: Path, *, force: bool) -> None:
    """Raise before any work where a film cannot be written.

    Raises:
        UsageError: of another suffix, or the file exists.
        EnvironmentNotAbleError: OpenCV is not installed.
    """
    if path.suffix.lower() not in CODECS:
        raise UsageError(f"expected a film ending in {', '.join(CODECS)}, got {path}.")
    video.import_cv2()
    require_writable(path, force=force)


class Annotator:
    """Writes a film; when the `with` block ends, in whatever way, what was written so far is complete in its place."""

    def __init__(self, path: Path, *, fps: float) -> None:
        """Write to a path that `require_film` found good, `fps` frames a second; the first frame decides the size."""
        self._path, self._fps = path, fps
        # OpenCV chooses the container by the suffix.
        hidden = temporary_path(path)
        self._temporary = hidden.with_name(hidden.name + path.suffix.lower())
        self._writer: Any = None

    def write(self, frame: np.ndarray, prediction: Prediction) -> None:
        """Write a frame (H, W, 3) uint8, BGR, with its best class and score.

        Raises:
            UsageError: this OpenCV cannot write such a film.
        """
        import numpy as np

        cv2 = video.import_cv2()
        height, width = frame.shape[:2]
        if self._writer is None:
            code = cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(os.fspath(self._temporary), code, self._fps, (width, height))
            if not self._writer.isOpened():
                raise UsageError(f"OpenCV cannot write {self._path} here. Choose another suffix: {', '.join(CODECS)}.")
        drawn = annotated(Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1])), prediction)
        self._writer.write(np.ascontiguousarray(np.asarray(drawn)[:, :, ::-1]))

    def __enter__(self) -> Annotator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if self._temporary.is_file():
            self._temporary.replace(self._path)


def annotated(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Return a picture with a line of text along its lower edge."""
    image = image.copy()
    size = max(10, round(image.height * _TEXT_SHARE))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    text = f"{prediction.label}  {prediction.score:.0%}" if prediction.known else f"unknown ({prediction.label}?)"
    top = image.height - round(1.7 * size)
    draw.rectangle((0, top, image.width, image.height), fill=_GROUND)
    colour = _KNOWN if prediction.known else _UNKNOWN
    draw.text((size // 2, top + round(0.25 * size)), text, fill=colour, font=font)
    return image
