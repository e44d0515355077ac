"""Reports of made-up figures, and a browser to read them with."""

import base64
import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.artifacts import Precision
from p4q_edge.runtime.evaluation import comparison as chain
from p4q_edge.runtime.evaluation.report import document
from p4q_edge.runtime.statistics import timing

CLASSES = tuple(f"digit {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven"))


def make_chain(*, n: int = 400, shift: float = 0.0) -> chain.ChainReport:
    """A chain of four stages; the engine differs from the others by `shift`."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    encoder = generator.normal(size=(3 * 64, 24))
    classes = generator.normal(size=(len(CLASSES), 24))

    def stage(noise: float):  # type: ignore[no-untyped-def]
        moved = encoder + noise * np.random.default_rng(1).normal(size=encoder.shape)

        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            features = (batch.reshape(len(batch), -1) / 255 - 0.5) @ moved
            embedding = features / np.linalg.norm(features, axis=1, keepdims=True)
            return {"embedding": embedding, "logits": 4 * embedding @ classes.T}

        return run

    labels = stage(0.05)(images)["logits"].argmax(axis=1)
    wrong = generator.random(n) < 0.15
    labels[wrong] = generator.integers(0, len(CLASSES), wrong.sum())
    stages = {"float": stage(0.05), "fake_quant": stage(0.0), "onnx": stage(1e-4), "engine": stage(1e-4 + shift)}
    options = chain.ChainOptions(gates=chain.Gates(max_top1_drop=1.0))
    return chain.validate_chain(stages, images, labels, CLASSES, options=options)


def make_report(**changes: Any) -> document.Report:
    """A report with every section filled."""
    measured = make_chain()
    times = np.random.default_rng(3).gamma(30, 0.1, (3, 200))
    top1 = [measured.stage(name).top1 for name in ("engine", "float", "float")]
    rows = tuple(
        document.SpeedRow(
            name=name,
            scope="engine",
            batch=1,
            latency=timing.summarize(values),
            size_bytes=size,
            top1=accuracy,
            times_ms=tuple(values.tolist()),
            invalid=("other processes used 1.00 of 2 cores",) if name == "FP16" else (),
        )
        for name, values, size, accuracy in zip(
            ("INT8", "FP32", "FP16"), times, (89_000_000, 351_000_000, 176_000_000), top1, strict=True
        )
    )
    values: dict[str, Any] = {
        "title": "demo.onnx: handwritten <digits> & $more$",
        "passed": True,
        "data": "400 made-up images",
        "built": document.Built(
            engine="build/demo.onnx",
            backend="onnxruntime",
            size_bytes=2_130_000,
            model="demo ViT, printed glyphs",
            license="Apache-2.0",
            precision=Precision(
                weight_bits=8,
                activation_bits=8,
                execution="executed",
                remainder="fp32",
                quantized_linears=18,
                quantized_attentions=3,
            ),
            int8_share=0.93,
            kernels={"MatMulIntegerToFloat": 18, "LayerNormalization": 9},
        ),
        "chain": measured,
        "golden": make_chain(n=8),
        "baselines": (
            document.baseline("FP32 zero-shot", [0.565], n=1637),
            document.baseline("FP32 learned prompts", [0.762, 0.755, 0.771], n=1637),
            document.baseline("P4Q", [0.83, 0.85, 0.84], n=1637, precision="W8A8 executed"),
        ),
        "learning": tuple(
            document.LearningPoint(epoch=epoch, loss=2.0 / epoch, held_out_top1=1 - 0.5 / epoch) for epoch in (1, 2, 3)
        ),
        "speed": rows,
        "debug": document.DebugReport(
            n=16,
            reference="onnx",
            tolerance=0.05,
            first="encoder.blocks.2.mlp.fc1",
            operator="node_MatMul_12",
            layers=(
                document.LayerFinding(layer="encoder.blocks.1.mlp.fc2", error_in=1e-6, error_out=2e-6),
                document.LayerFinding(layer="encoder.blocks.2.mlp.fc1", error_in=2e-6, error_out=0.97),
            ),
            keep_float=("encoder.blocks.2.mlp.fc1",),
        ),
        "not_checked": ("the FP16 engine: no GPU here",),
        "provenance": document.Provenance(
            command=("validate", "build/demo.onnx", "--max-top1-drop", "1.0"),
            digests={"engine": "a" * 64, "bundle": "b" * 64},
            seeds={"recipe": 0, "bootstrap": 0},
            versions={"p4q-edge": "0.1.0", "onnxruntime": "1.32.0"},
            machine={"cpu": "x86_64; AMD EPYC; avx2 fma"},
            git_commit="0123456789ab",
            created="2026-11-23T10:00:00+00:00",
        ),
    }
    return document.Report(**{**values, **changes})


class Browser:
    """One page of a headless Chromium, spoken to in the DevTools protocol over file descriptors 3 and 4."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def hand_over() -> None:
            # A first copy out of the way: the pipes themselves may be numbered 3 or 4.
            high = [os.dup2(fd, 100 + i) for i, fd in enumerate((to_browser, from_browser))]
            os.dup2(high[0], 3, inheritable=True)
            os.dup2(high[1], 4, inheritable=True)

        self._process = subprocess.Popen(
            [
                executable,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=hand_over,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            assert part, "Chromium is gone"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Load a file and wait until it is complete."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def complaints(self) -> list[str]:
        """Everything on the console, and every log entry of the browser about the page."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in methods]

    def requests(self) -> list[str]:
        """Every address that the page asked for beside itself; data in the page is not a request."""
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent[1:] if not url.startswith("data:")]

    def screenshot(self) -> bytes:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._out)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
