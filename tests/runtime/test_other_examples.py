"""The examples that need more than Python: a notebook, which is run, and a ROS 2 node, which meets doubles of ROS."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import Prediction, ZeroShotClassifier

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "05_notebook/classify.ipynb"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def outputs(cell: Any) -> str:
    """Return what a cell shows, as text and as HTML."""
    parts = [output.get("text", "") + "".join(output.get("data", {}).values()) for output in cell.get("outputs", ())]
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that run it
def test_the_notebook_is_run_from_top_to_bottom(
    tiny_engine: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("ENGINE", str(tiny_engine))
    monkeypatch.setenv("IMAGES", str(images))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.id: outputs(cell) for cell in notebook.cells}
    assert "<table" in shown["open"]  # the classifier shows itself
    with ZeroShotClassifier(tiny_engine) as classifier:
        best = classifier.classify(str(images / "0.png"))
        assert isinstance(best, Prediction)
        assert best.label in shown["one"]
    assert len(shown["many"].strip().splitlines()) == 5
    assert shown["near"].count(" looks like ") == 3


def test_the_notebook_is_kept_without_what_it_showed() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_an_application_of_fastapi(tiny_engine: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    testing = pytest.importorskip("starlette.testclient")
    monkeypatch.setenv("ENGINE", str(tiny_engine))
    script = EXAMPLES / "09_in_an_application/classify_app.py"
    monkeypatch.syspath_prepend(str(script.parent))
    application = importlib.import_module(script.stem).app
    with testing.TestClient(application) as client, ZeroShotClassifier(tiny_engine) as classifier:
        best = classifier.classify(images / "0.png", top_k=3)
        assert isinstance(best, Prediction)
        found = client.post("/classify", files={"image": (images / "0.png").read_bytes()}).json()
        assert (found["label"], found["known"]) == (best.label, best.known)
        assert found["score"] == pytest.approx(best.score)
        assert [label for label, _ in found["topk"]] == [label for label, _ in best.topk]
        refused = client.post("/classify", files={"image": b"no image"})
        assert (refused.status_code, "is not one of JPEG" in refused.json()["detail"]) == (422, True)


class RosNode:
    """As much of `rclpy.node.Node` as the example uses."""

    parameters: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.published: list[Any] = []
        self.errors: list[str] = []

    def declare_parameter(self, name: str, default: Any) -> SimpleNamespace:
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind: type, topic: str, depth: int) -> SimpleNamespace:
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
        self.callback = callback

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(error=lambda text, once: self.errors.append(text))

    def destroy_node(self) -> None:
        self.parameters = {}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tiny_engine: Path) -> Any:
    """The node of the example, with doubles of ROS."""
    modules: dict[str, dict[str, Any]] = {
        "rclpy": {},
        "rclpy.node": {"Node": RosNode},
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": SimpleNamespace},
        "std_msgs": {},
        "std_msgs.msg": {"String": SimpleNamespace},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(RosNode, "parameters", {"engine": str(tiny_engine)})
    made = runpy.run_path(str(EXAMPLES / "06_ros2_node/classify_node.py"))["ClassifyNode"]()
    yield made
    made.destroy_node()


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_the_node_answers_what_the_classifier_does(node: Any, tiny_engine: Path, encoding: str) -> None:
    """Rows of a message may be longer than their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    rows = np.zeros((6, 20), np.uint8)
    rows[:, :15] = pixels.reshape(6, 15)
    node.callback(SimpleNamespace(encoding=encoding, height=6, width=5, step=20, data=rows.tobytes()))
    (message,) = node.published
    with ZeroShotClassifier(tiny_engine) as classifier:
        best = classifier.classify(pixels, color="rgb" if encoding == "rgb8" else "bgr")
    assert isinstance(best, Prediction)
    answer = json.loads(message.data)
    assert (answer["label"], answer["known"]) == (best.label, best.known)
    assert answer["score"] == pytest.approx(best.score)


def test_the_node_says_which_images_it_takes(node: Any) -> None:
    node.callback(SimpleNamespace(encoding="16UC1", height=1, width=1, step=2, data=b"00"))
    assert node.published == []
    assert node.errors == ["expected images as rgb8 or bgr8, got 16UC1"]


def test_the_node_is_marked_as_not_run() -> None:
    script = EXAMPLES / "06_ros2_node/classify_node.py"
    assert "NOT RUN" in script.read_text()
    assert "**Not run**" in script.with_name("README.md").read_text()
