"""Streams: images, and frames of an OpenCV that a test plays."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, UsageError
from p4q_edge.runtime.images import video


class Capture:
    """A film of frames whose pixels are their number; `read` waits until the frame is shown."""

    def __init__(
        self, count: int, *, opened: bool = True, fps: float = 30.0, shown: threading.Semaphore | None
    ) -> None:
        self.count, self.opened, self.fps, self.shown = count, opened, fps, shown
        self.said = float(count)
        self.position = -1
        self.released = False

    def isOpened(self) -> bool:
        return self.opened

    def get(self, what: int) -> float:
        return self.fps if what == 5 else self.said

    def grab(self) -> bool:
        self.position += 1
        return self.position < self.count

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return self.position != 1, np.full((8, 8, 3), self.position, np.uint8)

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.shown is not None:
            self.shown.acquire()
        return (True, self.retrieve()[1]) if self.grab() else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Capture]:
    """Install an OpenCV whose every source is the given film."""

    def install(
        count: int, *, opened: bool = True, fps: float = 30.0, shown: threading.Semaphore | None = None
    ) -> Capture:
        capture = Capture(count, opened=opened, fps=fps, shown=shown)
        module = types.SimpleNamespace(VideoCapture=lambda source: capture, CAP_PROP_FPS=5, CAP_PROP_FRAME_COUNT=7)
        monkeypatch.setitem(sys.modules, "cv2", module)
        return capture

    return install


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"")
    return path


def numbers(frames: Iterator[np.ndarray]) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_a_film_gives_all_frames_that_can_be_decoded(camera: Callable[..., Capture], film: Path) -> None:
    capture = camera(5)
    assert numbers(video.frames(film)) == [0, 2, 3, 4]
    assert capture.released


def test_a_film_that_is_cut_off_is_told_of(
    camera: Callable[..., Capture], film: Path, caplog: pytest.LogCaptureFixture
) -> None:
    camera(5).said = 30.0
    assert len(numbers(video.frames(film))) == 4
    assert "film.mp4 ends after 5 of 30 frames that it names: it is cut off or damaged" in caplog.text
    camera(0)
    with pytest.raises(InputError, match=r"film.mp4 holds no frame that can be read. Check that it is whole"):
        list(video.frames(film))


@pytest.mark.parametrize(
    ("fps", "max_fps", "expected"),
    [(30.0, 10.0, [0, 3, 6, 9]), (30.0, 12.0, [0, 3, 5, 8, 10]), (30.0, 60.0, None), (0.0, 10.0, None)],
)
def test_a_film_is_sampled_by_its_own_time(
    camera: Callable[..., Capture], film: Path, fps: float, max_fps: float, expected: list[int] | None
) -> None:
    camera(12, fps=fps)
    assert numbers(video.frames(film, max_fps=max_fps)) == (expected or [0, *range(2, 12)])


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


def test_a_camera_gives_the_newest_frame(camera: Callable[..., Capture]) -> None:
    shown = threading.Semaphore(1)
    capture = camera(100, shown=shown)
    frames = video.frames(0)
    assert int(next(frames)[0, 0, 0]) == 0
    shown.release(6)
    wait_until(lambda: capture.position == 6)
    assert int(next(frames)[0, 0, 0]) >= 5
    frames.close()  # type: ignore[attr-defined]
    assert not capture.released
    shown.release()
    wait_until(lambda: capture.released)


@pytest.mark.parametrize("source", [0, "rtsp://camera/stream"])
def test_a_live_source_that_stops_is_an_error(camera: Callable[..., Capture], source: int | str) -> None:
    camera(0)
    with pytest.raises(InputError, match="gives no more frames. Check the camera or the network"):
        list(video.frames(source, max_fps=1000.0))


def test_a_live_source_that_stalls_is_an_error(camera: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_FRAME_WAIT_S", 0.01)
    shown = threading.Semaphore(0)
    capture = camera(1, shown=shown)
    with pytest.raises(InputError, match="gives no more frames"):
        next(video.frames("rtsp://camera/stream"))
    shown.release()
    wait_until(lambda: capture.released)


def test_sources_that_cannot_be_opened(
    camera: Callable[..., Capture], film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "DEVICES", tmp_path)
    capture = camera(1, opened=False)
    with pytest.raises(InputError, match=r"OpenCV cannot open camera 3; there is no .*/video\*\. Connect one or name"):
        list(video.frames(3))
    assert capture.released
    for number in (10, 2):
        (tmp_path / f"video{number}").touch()
    with pytest.raises(InputError, match=r"this machine has \S+/video2, \S+/video10\. Connect one or name another"):
        list(video.frames(3))
    with pytest.raises(InputError, match=r"Check the address, and that the camera or server answers there"):
        list(video.frames("rtsp://camera/1"))
    with pytest.raises(InputError, match=r"Check that it is whole, and of a format that OpenCV reads"):
        list(video.frames(film))
    with pytest.raises(InputError, match=r"absent\.mp4 does not exist"):
        list(video.frames(tmp_path / "absent.mp4"))


def test_without_opencv_the_extra_is_named(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"pip install 'p4q-edge-runtime\[opencv\]'"):
        list(video.frames(film))


@pytest.mark.parametrize(
    ("source", "expected"),
    [(0, True), ("a.MP4", True), (Path("a.mkv"), True), ("rtsp://x", True), ("a.png", False), (b"bytes", False)],
)
def test_what_is_a_video(source: object, expected: bool) -> None:
    assert video.is_video(source) is expected


def test_images_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(video.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(video.time, "sleep", sleep)
    assert list(video.paced("abc", max_fps=4.0)) == ["a", "b", "c"]
    assert slept == [0.0, 0.25, 0.25]
    assert list(video.paced("abc", max_fps=None)) == ["a", "b", "c"]


def test_a_classifier_streams_frames_as_bgr(camera: Callable[..., Capture], tiny_engine: Path, film: Path) -> None:
    camera(4)
    with ZeroShotClassifier(tiny_engine) as classifier:
        answers = list(classifier.stream(film, top_k=2))
        assert numbers(frame for frame, _ in answers) == [0, 2, 3]  # type: ignore[misc]
        for frame, prediction in answers:
            assert prediction == classifier.classify(frame, top_k=2, color="bgr")


def test_a_classifier_streams_images(tiny_engine: Path, photo: Path, picture: Image.Image) -> None:
    with ZeroShotClassifier(tiny_engine) as classifier:
        answers = list(classifier.stream([photo, picture]))
        assert [image for image, _ in answers] == [photo, picture]
        assert answers[0][1].topk == answers[1][1].topk
        assert answers[0][1] == classifier.classify(photo)
        assert len(list(classifier.stream(photo.parent))) == 1
        for fps in (0, -1.0, 1e-320, float("nan")):
            with pytest.raises(UsageError, match=f"max_fps must be at least 1e-05, about one image a day, got {fps}"):
                next(classifier.stream([photo, photo], max_fps=fps))
