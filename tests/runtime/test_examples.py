"""Every example does what its README says."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import Prediction, ZeroShotClassifier

EXAMPLES = Path(__file__).parents[2] / "examples"
RAY = "bulk/test_ray_score.py"
SERVE = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"
Example = Callable[..., None]


def example(name: str) -> Example:
    """The `main` of an example by the name of its file."""
    (path,) = EXAMPLES.glob(f"*/{name}.py")
    main: Example = runpy.run_path(str(path))["main"]
    return main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs of each of two classes, in folders of their names."""
    generator = np.random.default_rng(0)
    for shade, name in ((40, "cup"), (200, "plate")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            pixels = (generator.integers(-30, 30, (8, 8, 3)) + shade).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def said(engine: Path, image: Path) -> str:
    """The line that most examples print about an image."""
    with ZeroShotClassifier(engine) as classifier:
        best = classifier.classify(image)
    assert isinstance(best, Prediction)
    return f"{image}  {best.label if best.known else 'unknown'}  {best.score:.1%}"


def test_a_folder(tiny_engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    example("classify_folder")(str(tiny_engine), str(photos))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 7
    assert said(tiny_engine, photos / "cup" / "0.png") in lines
    assert sum(int(word) for word in lines[-1].replace(":", " ").split() if word.isdigit()) == 6
    assert "broken.jpg" in err


def test_a_camera_says_what_stays(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A film of two scenes with one odd frame between them."""
    pool = list(np.random.default_rng(3).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    with ZeroShotClassifier(tiny_engine) as classifier:
        labels = [best.label if best.known else "unknown" for best in classifier.classify(pool, color="bgr")]
    other = next(index for index, label in enumerate(labels) if label != labels[0])
    one, two = pool[0], pool[other]

    class Film:
        """What OpenCV opens."""

        def __init__(self, source: object) -> None:
            self.left = [one] * 4 + [two] + [one] * 3 + [two] * 4

        def isOpened(self) -> bool:
            return True

        def get(self, asked: int) -> float:
            return 25.0 if asked == 5 else 12.0

        def grab(self) -> bool:
            return bool(self.left)

        def retrieve(self) -> tuple[bool, Any]:
            return True, self.left.pop(0)

        def read(self) -> tuple[bool, Any]:
            return (True, self.left.pop(0)) if self.left else (False, None)

        def release(self) -> None:
            self.left = []

    monkeypatch.setitem(
        sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Film, CAP_PROP_FPS=5, CAP_PROP_FRAME_COUNT=7)
    )
    (tmp_path / "film.mp4").write_bytes(b"a film")
    example("camera_loop")(str(tiny_engine), str(tmp_path / "film.mp4"))
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [labels[0], labels[other]]


@pytest.fixture
def server(tiny_engine: Path) -> Iterator[str]:
    """The address of a server."""
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-c", SERVE, "serve", str(tiny_engine), "--port", "0", "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


def test_a_server(server: str, tiny_engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [photos / "cup" / "0.png", photos / "plate" / "2.png"]
    example("ask_server")(server, *map(str, images))
    assert capsys.readouterr().out.splitlines() == [said(tiny_engine, image) for image in images]
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="^422: "):
        example("ask_server")(server, str(photos / "broken.jpg"))


def test_tritons_client(server: str, tiny_engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against `p4q-edge serve`; tests/triton runs it against Triton itself."""
    exceptions = pytest.importorskip("tritonclient.utils", reason="needs tritonclient[http]")
    pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    images = [photos / "cup" / "0.png", photos / "plate" / "2.png"]
    address, model = server.removeprefix("http://"), tiny_engine.stem
    example("ask_triton")(address, model, *map(str, images))
    assert capsys.readouterr().out.splitlines() == [said(tiny_engine, image) for image in images]
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(exceptions.InferenceServerException, match="image 0: image of 8 bytes is not one of JPEG"):
        example("ask_triton")(address, model, str(photos / "broken.jpg"))


def test_teaching(tiny_engine: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("teach_shelf")(str(tiny_engine), str(photos), str(photos / "plate" / "1.png"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("learned cup, plate; held out: ")
    assert second.startswith(f"{photos / 'plate' / '1.png'}  plate  ")


OTHERS = ("06_ros2_node/classify_node.py", "07_ray/ray_score.py", "09_in_an_application/classify_app.py")
SCRIPTS = sorted(set(EXAMPLES.glob("*/*.py")) - {EXAMPLES / other for other in OTHERS})
"""Others than those take words of a command line as they come."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("images", [[], ["photo.jpg"]], ids=["no words", "words that name nothing"])
def test_wrong_words_are_answered_in_a_line(
    script: Path, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script.stem == "ask_triton":
        pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    monkeypatch.chdir(tmp_path)
    first = {"ask_server": ["http://127.0.0.1:9"], "ask_triton": ["127.0.0.1:9", "tiny"]}.get(script.stem, ["no.onnx"])
    monkeypatch.setattr(sys, "argv", [script.name, *([*first, *images] if images else [])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    expected = "error: " if images else f"python {script.name} "
    assert expected in str(ended.value.code)


def test_every_example_is_described_and_run() -> None:
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.name[:2].isdigit())
    listed = (EXAMPLES / "README.md").read_text()
    tests = (Path(__file__).parent / name for name in ("test_examples.py", "test_other_examples.py", RAY))
    run = "".join(path.read_text() for path in tests)
    for folder in folders:
        (script,) = (path for path in (EXAMPLES / folder).iterdir() if path.suffix in (".py", ".ipynb"))
        assert f" {script.name}" in (EXAMPLES / folder / "README.md").read_text()
        assert f"[{folder}]({folder})" in listed
        assert f'example("{script.stem}")' in run or f'"{folder}/{script.name}"' in run
        # A notebook's lines are those of JSON, a node has ROS to set up, and Ray's goes on where it was interrupted.
        assert folder in ("05_notebook", "06_ros2_node", "07_ray") or len(script.read_text().splitlines()) <= 40
    assert not list(EXAMPLES.glob("*.py")), "each has a folder of its own"
