"""A double of a library that computes what golden samples say, and its worker in the test's own process."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from p4q_edge.runtime import errors
from p4q_edge.runtime.artifacts import Golden
from p4q_edge.runtime.builders.tensorrt.progress import Progress
from p4q_edge.runtime.builders.tensorrt.worker import report_events

OUTPUTS = ("logits", "embedding", "features")


def answer_as(double: Any, golden: Golden) -> None:
    """Let the engines of a double take the golden images and give the golden results; of others the first."""
    known = {picture.tobytes(): index for index, picture in enumerate(golden.image)}

    def answer(image: np.ndarray) -> dict[str, np.ndarray]:
        rows = [known.get(picture.tobytes(), 0) for picture in image]
        return {name: getattr(golden, name)[rows] for name in OUTPUTS}

    side = golden.image.shape[2:]
    double.compute = answer
    double.input_shape = (-1, 3, *side)
    double.io = {
        "image": ("UINT8", (-1, 3, *side)),
        **{name: ("FLOAT", (-1, getattr(golden, name).shape[1])) for name in OUTPUTS},
    }


def run_worker_here(request: dict[str, Any], *, task: str, progress: Any = None) -> dict[str, Any]:
    """Serve a request in this process; what the worker reports as an error is raised, as its parent does."""
    events = io.StringIO()
    report_events(io.StringIO(json.dumps(request) + "\n"), events, cancelled=lambda: False)
    *earlier, last = [json.loads(line) for line in events.getvalue().splitlines()]
    for event in earlier if progress is not None else ():
        progress(Progress(task=task, phase=event["phase"], fraction=event["fraction"]))
    if last["event"] == "error":
        raise getattr(errors, last["kind"])(last["message"])
    return {name: value for name, value in last.items() if name != "event"}
