"""`classify` of films and cameras, with an OpenCV that a test plays, and with a real one where it is installed."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.bulk import annotation
from p4q_edge.runtime.bulk.annotation import Annotator, annotated, font_of
from p4q_edge.runtime.classification.predictions import Prediction

Run = Callable[..., tuple[int, str, str]]
SIDE = 64


def frames(count: int) -> np.ndarray:
    """Smooth frames (n, H, W, 3) uint8, BGR, of which neighbours differ."""
    ramp = np.linspace(0, 255, SIDE)
    shades = [np.stack([ramp * (n % 3 == k) for k in range(3)], axis=-1) for n in range(count)]
    return np.stack([np.broadcast_to(shade, (SIDE, SIDE, 3)) for shade in shades]).astype(np.uint8)


class Writer:
    """Keeps the frames of a film, and writes how many there were as its file."""

    opened = True
    made: ClassVar[list[Writer]] = []

    def __init__(self, path: str, code: str, fps: float, size: tuple[int, int]) -> None:
        self.path, self.code, self.fps, self.size = path, code, fps, size
        self.frames: list[np.ndarray] = []
        Writer.made.append(self)

    def isOpened(self) -> bool:
        return self.opened

    def write(self, frame: np.ndarray) -> None:
        self.frames.append(frame)

    def release(self) -> None:
        Path(self.path).write_text(f"{len(self.frames)} frames")


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    """Install an OpenCV whose every source is a film of five frames; each can be opened several times."""

    class Capture:
        def __init__(self, source: object) -> None:
            self.left: list[np.ndarray] = list(frames(5))
            self.grabbed: np.ndarray | None = None

        def isOpened(self) -> bool:
            return True

        def get(self, what: int) -> float:
            return 25.0 if what == 5 else 5.0

        def grab(self) -> bool:
            self.grabbed = self.left.pop(0) if self.left else None
            return self.grabbed is not None

        def retrieve(self) -> tuple[bool, Any]:
            return True, self.grabbed

        def read(self) -> tuple[bool, Any]:
            return (True, self.left.pop(0)) if self.left else (False, None)

        def release(self) -> None:
            self.left = []

    Writer.made, Writer.opened = [], True
    fourcc = "".join
    module = types.SimpleNamespace(
        VideoCapture=Capture,
        VideoWriter=Writer,
        VideoWriter_fourcc=lambda *letters: fourcc(letters),
        CAP_PROP_FPS=5,
        CAP_PROP_FRAME_COUNT=7,
    )
    monkeypatch.setitem(sys.modules, "cv2", module)
    return Writer


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """The name of a film; what it shows is up to OpenCV."""
    path = tmp_path / "film.mp4"
    path.write_bytes(b"a film")
    return path


def expected(engine: Path) -> list[Prediction]:
    with ZeroShotClassifier(engine) as classifier:
        found = classifier.classify(list(frames(5)), color="bgr")
    assert isinstance(found, list)
    return found


def test_each_frame_is_answered(run: Run, opencv: type[Writer], tiny_engine: Path, film: Path) -> None:
    code, out, _ = run("classify", tiny_engine, film, "--json")
    assert code == 0
    answers = json.loads(out)["predictions"]
    assert [answer["source"] for answer in answers] == [f"{film}#{number}" for number in range(5)]
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected(tiny_engine)]
    _, out, _ = run("classify", tiny_engine, film, "--max-fps", "5")
    assert len(out.splitlines()) == 1, "every fifth of 25 a second"


def test_a_table_of_a_film(run: Run, opencv: type[Writer], tiny_engine: Path, film: Path, tmp_path: Path) -> None:
    table = tmp_path / "film.csv"
    assert run("classify", tiny_engine, film, "--output", table)[0] == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [answer.label for answer in expected(tiny_engine)]


def test_an_annotated_film(run: Run, opencv: type[Writer], tiny_engine: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.avi"
    assert run("classify", tiny_engine, film, "--annotate", out)[0] == 0
    (writer,) = opencv.made
    assert (writer.code, writer.fps, writer.size) == ("MJPG", 25.0, (SIDE, SIDE))
    assert out.read_text() == "5 frames"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.avi"]
    for written, shown in zip(writer.frames, frames(5), strict=True):
        assert (written[: SIDE // 2] == shown[: SIDE // 2]).all(), "the picture above is as it was"
        assert (written[-SIDE // 6 :] != shown[-SIDE // 6 :]).any()
    code, _, err = run("classify", tiny_engine, film, "--annotate", out)
    assert code == 2
    assert "--force" in err


def test_what_was_written_stays_where_a_camera_stops(
    run: Run, opencv: type[Writer], tiny_engine: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    code, _, err = run("classify", tiny_engine, "cam:0", "--annotate", out, "--json", "--stream")
    assert code == 2
    assert "gives no more frames" in err
    count = int(out.read_text().split()[0])
    assert 1 <= count <= 5
    assert opencv.made[0].fps == 10.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("FILM", "cam:0"), "one film, stream or camera at a time"),
        (("FILM", "--sort-into", "out"), "--sort-into and --embeddings are for images, and this is a film"),
        (("cam:0", "--json"), "For one line of JSON a frame: --json --stream"),
        (("rtsp://board/1", "--output", "a.csv"), "has no end at which a table or document could be written"),
        (
            ("PHOTO", "--annotate", "a.mp4"),
            "--annotate and --max-fps are for a film or a camera",
        ),
        (("FILM", "--annotate", "a.txt"), "expected a film ending in .mp4"),
        (("FILM", "--annotate", "FILM", "--force"), "is the film that is looked at. Name another file"),
        (("FILM", "--annotate", "PHOTO/a.mp4"), "photo.png is not a folder. Name a file in a folder"),
        (("cam:99999999999999999999",), "OpenCV cannot open camera 99999999999999999999; "),
        (("cam:",), "expected a camera by its number, as cam:0, got cam:"),
        (("cam:front",), "expected a camera by its number, as cam:0, got cam:front"),
        (("PHOTO", "cam:-1"), "expected a camera by its number, as cam:0, got cam:-1"),
        (("none.mp4",), "none.mp4 does not exist. Check the path of the video."),
    ],
)
def test_what_is_refused(
    run: Run,
    opencv: type[Writer],
    tiny_engine: Path,
    film: Path,
    photo: Path,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    given = [argument.replace("FILM", str(film)).replace("PHOTO", str(photo)) for argument in arguments]
    code, _, err = run("classify", tiny_engine, *given)
    assert code == 2
    assert said in err


def test_a_film_that_opencv_cannot_write(run: Run, opencv: type[Writer], tiny_engine: Path, film: Path) -> None:
    opencv.opened = False
    code, _, err = run("classify", tiny_engine, film, "--annotate", film.with_name("out.mkv"))
    assert code == 2
    assert "OpenCV cannot write" in err
    assert not film.with_name("out.mkv").exists()


def test_a_film_that_does_not_fit_on_the_disk_is_said_to_be_none(
    run: Run, opencv: type[Writer], tiny_engine: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run("classify", tiny_engine, film, "--annotate", film.with_name("out.avi"))
    assert code == 1
    assert "out.avi: the disk is full" in err
    assert [path.name for path in film.parent.iterdir() if "out" in path.name or ".tmp" in path.name] == []


def test_frames_of_another_size_are_brought_to_that_of_the_first(opencv: type[Writer], tmp_path: Path) -> None:
    answer = Prediction(label="cup", score=0.9, index=0, known=True, topk=(("cup", 0.9),))
    with Annotator(tmp_path / "new" / "out.avi", fps=5.0) as film:
        film.write(np.zeros((SIDE, SIDE, 3), np.uint8), answer)
        film.write(np.zeros((2 * SIDE, SIDE, 3), np.uint8), answer)
    assert [frame.shape for frame in opencv.made[0].frames] == [(SIDE, SIDE, 3)] * 2
    assert (tmp_path / "new" / "out.avi").read_text() == "2 frames"


def test_a_folder_of_a_films_name_is_a_folder(run: Run, tiny_engine: Path, tmp_path: Path, photo: Path) -> None:
    folder = tmp_path / "clips.ts"
    folder.mkdir()
    (folder / "a.png").write_bytes(photo.read_bytes())
    assert run("classify", tiny_engine, folder)[0] == 0


def test_the_line_of_text_says_whether_it_is_known() -> None:
    from PIL import Image

    image = Image.new("RGB", (160, 120), (255, 255, 255))
    fields: dict[str, Any] = {"label": "cup", "score": 0.9, "index": 0, "topk": (("cup", 0.9),)}
    known = annotated(image, Prediction(known=True, **fields))
    unknown = annotated(image, Prediction(known=False, **fields))
    assert image.getpixel((0, 119)) == (255, 255, 255), "the picture itself is left alone"
    assert known.tobytes() != unknown.tobytes()
    assert known.crop((0, 0, 160, 100)).tobytes() == image.crop((0, 0, 160, 100)).tobytes()


def test_words_beyond_ascii_are_drawn_by_a_font_that_has_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = font_of("cup", 12)
    named: list[str] = []

    class Font:
        def __init__(self, name: str, size: int) -> None:
            named.append(name)
            if name == "absent":
                raise OSError("cannot open resource")
            self.letters = {"latin": "Käse", "all": "Käse 猫\n"}[name]

        def getmask(self, letter: str) -> bytes:
            return letter.encode() if letter in self.letters else b"box"

    monkeypatch.setattr(annotation.ImageFont, "truetype", Font)
    monkeypatch.setattr(annotation.ImageFont, "load_default", lambda size: own)
    monkeypatch.setattr(annotation, "FONTS", ("absent", "latin", "all"))
    assert (font_of("Käse", 12).letters, named) == ("Käse", ["absent", "latin"])  # type: ignore[union-attr]
    assert font_of("猫", 12).letters == "Käse 猫\n"  # type: ignore[union-attr]
    assert font_of("قط", 12) is font_of("🐱", 12) is own
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "boxes stand for some in the film" in caplog.text


def test_with_a_real_opencv(run: Run, tiny_engine: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    source, out = tmp_path / "in.avi", tmp_path / "out.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 12.0, (SIDE, SIDE))
    for frame in frames(6):
        writer.write(frame)
    writer.release()
    code, said, _ = run("classify", tiny_engine, source, "--annotate", out)
    assert code == 0
    assert len(said.splitlines()) == 6
    capture = cv2.VideoCapture(str(out))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0)
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == 6
