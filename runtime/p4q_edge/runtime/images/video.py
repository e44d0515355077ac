"""Frames of cameras, video files and network streams, through OpenCV (an optional extra)."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.runtime.choices import LEAST_FPS
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, UsageError
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
DEVICES = Path("/dev")
"""Where Linux has its cameras, and other systems none."""
LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtp://", "udp://")

MOST_CAMERAS = 1 << 16
_MOST_DIGITS = 20
LEAST_SHARE = 0.9
"""Of the frames that a film names, which some containers only estimate."""

_FRAME_WAIT_S = 10.0


def is_video(source: object) -> bool:
    """Return whether a source is a camera number, a video file or a network stream."""
    if isinstance(source, int):
        return True
    if not isinstance(source, (str, os.PathLike)):
        return False
    return is_live(source) or Path(source).suffix.lower() in SUFFIXES


def is_live(source: object) -> bool:
    """Return whether frames of a source come at their own pace, so that late ones must be dropped."""
    return isinstance(source, int) or (isinstance(source, str) and source.startswith(LIVE_SCHEMES))


def named_source(name: str) -> int | str | None:
    """Return what a word of a command line names: a camera (`cam:0`), a stream or a film; None of anything else.

    Raises:
        UsageError: it begins as a camera does, and goes on with no number.
    """
    kind, colon, number = name.partition(":")
    if kind == "cam" and colon and not os.path.lexists(name):
        if not (number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS):
            raise UsageError(f"expected a camera by its number, as cam:0, got {name[:40]}")
        return int(number)
    return name if is_video(name) and not Path(name).is_dir() else None


def film_fps(source: int | str) -> float | None:
    """Return how many frames a second a film has; None where it does not say, and of a live source."""
    if is_live(source):
        return None
    cv2 = import_cv2()
    capture = _opened(source)
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    return fps if math.isfinite(fps) and fps > 0 else None


def require_rate(max_fps: float | None) -> None:
    """Raise `UsageError` where so many images a second leave pauses that no clock has room for."""
    if max_fps is not None and not max_fps >= LEAST_FPS:
        raise UsageError(
            f"max_fps must be at least {LEAST_FPS:g}, about one image a day, got {max_fps}. Leave it out for no limit."
        )


def frames(source: int | str | os.PathLike[str], *, max_fps: float | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a source as (H, W, 3) uint8, BGR.

    A file gives its frames in order, or as many a second of the film as `max_fps` says. A camera or network stream
    gives the newest frame whenever one is asked for, and drops those in between.

    Raises:
        EnvironmentNotAbleError: OpenCV is not installed.
        InputError: the source cannot be opened, a film has no frame, or a live one stops.
    """
    cv2 = import_cv2()
    capture = _opened(source)
    if is_live(source):
        yield from _newest(capture, source=str(source), max_fps=max_fps)
        return
    fps, said = float(capture.get(cv2.CAP_PROP_FPS)), float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    read = yield from _sampled(capture, max_fps=max_fps, film_fps=fps)
    if not read:
        raise InputError(f"{source} holds no frame that can be read. Check that it is whole: play it.")
    if read < LEAST_SHARE * said:
        logger.warning(
            "%s ends after %d of %s that it names: it is cut off or damaged",
            source,
            read,
            number_of(int(said), "frame"),
        )


def _opened(source: int | str | os.PathLike[str]) -> Any:
    """Return OpenCV's capture of a source.

    Raises:
        EnvironmentNotAbleError: OpenCV is not installed.
        InputError: it cannot be opened.
    """
    cv2 = import_cv2()
    if not isinstance(source, int) and not is_live(source) and not Path(source).is_file():
        raise InputError(f"{os.fspath(source)} does not exist. Check the path of the video.")
    if not isinstance(source, int) or source < MOST_CAMERAS:  # OpenCV takes no longer number
        capture = cv2.VideoCapture(source if isinstance(source, int) else os.fspath(source))
        if capture.isOpened():
            return capture
        capture.release()
    raise InputError(_not_opened(source))


def _not_opened(source: int | str | os.PathLike[str]) -> str:
    """Return what to say of a source that OpenCV does not open."""
    if isinstance(source, int):
        cameras = sorted(DEVICES.glob("video*"), key=lambda path: (len(path.name), path.name))
        here = f"this machine has {', '.join(map(str, cameras))}" if cameras else f"there is no {DEVICES / 'video'}*"
        return (
            f"OpenCV cannot open camera {source}; {here}. Connect one or name another, end what else uses it, and look "
            "whether this user may: ls -l /dev/video*"
        )
    name = os.fspath(source)
    if is_live(source):
        return f"OpenCV cannot open {name!r}. Check the address, and that the camera or server answers there."
    return f"OpenCV cannot open {name!r}. Check that it is whole, and of a format that OpenCV reads: save it as .mp4."


def paced(items: Iterable[Any], *, max_fps: float | None) -> Iterator[Any]:
    """Yield items, at most `max_fps` a second."""
    next_time = -math.inf
    for item in items:
        if max_fps is not None:
            time.sleep(max(0.0, next_time - time.monotonic()))
            next_time = time.monotonic() + 1.0 / max_fps
        yield item


def _sampled(capture: Any, *, max_fps: float | None, film_fps: float) -> Generator[np.ndarray, None, int]:
    """Yield frames, and return how many there were, with those in between."""
    # OpenCV reports 0 or nothing where the file does not say.
    step = film_fps / max_fps if max_fps and film_fps > max_fps else 1.0
    index, wanted = 0, 0.0
    try:
        while capture.grab():
            if index >= wanted:
                found, frame = capture.retrieve()
                if found:
                    yield frame
                wanted += step
            index += 1
        return index
    finally:
        capture.release()


def _newest(capture: Any, *, source: str, max_fps: float | None) -> Iterator[np.ndarray]:
    slot = _Slot(capture)
    slot.start()
    try:
        yield from paced(slot.frames(), max_fps=max_fps)
        raise InputError(f"{source} gives no more frames. Check the camera or the network.")
    finally:
        slot.stop()


class _Slot(threading.Thread):
    """A thread that reads a live source, keeps its newest frame, and releases the source when it ends.

    Nobody waits for it: a read may block for as long as the network likes.
    """

    def __init__(self, capture: Any) -> None:
        super().__init__(name="p4q-edge-video", daemon=True)
        self._capture = capture
        self._changed = threading.Condition()
        self._frame: np.ndarray | None = None
        self._ended = False

    def run(self) -> None:
        found = True
        while found and not self._ended:
            found, frame = self._capture.read()
            with self._changed:
                self._frame = frame if found else self._frame
                self._ended = self._ended or not found
                self._changed.notify()
        self._capture.release()

    def take(self) -> np.ndarray | None:
        """Return the newest frame that was not taken yet, or None when the source ended or stalls."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout=_FRAME_WAIT_S)
            frame, self._frame = self._frame, None
            return frame

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the newest frame whenever one is asked for, until the source ends or stalls."""
        while (frame := self.take()) is not None:
            yield frame

    def stop(self) -> None:
        """Let the thread end after the read that is under way."""
        with self._changed:
            self._ended = True


def import_cv2() -> Any:
    """Return the module `cv2`, an optional extra of 86 MiB.

    Raises:
        EnvironmentNotAbleError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise EnvironmentNotAbleError(
            "cameras and videos need OpenCV, which is not installed. Use JetPack's (python3-opencv), or run: "
            "pip install 'p4q-edge-runtime[opencv]'"
        ) from error
    return cv2
