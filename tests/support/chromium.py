"""A headless Chromium with a fake camera, driven over a pipe in the DevTools protocol; no package is needed for it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FIRST_FREE = 20


def find_chromium() -> str | None:
    """Return the browser's program, or None where there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write frames (n, H, W, 3) uint8 RGB as the uncompressed video that Chromium's fake camera plays in a loop."""
    _, height, width, _ = frames.shape
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for frame in frames.astype(np.float64):
            red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
            luma = 0.299 * red + 0.587 * green + 0.114 * blue
            planes = [luma, 128 + 0.564 * (blue - luma), 128 + 0.713 * (red - luma)]
            halved = [plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for plane in planes[1:]]
            file.write(b"FRAME\n")
            for plane in (planes[0], *halved):
                file.write(np.clip(np.rint(plane), 0, 255).astype(np.uint8).tobytes())


class Chromium:
    """One page of a browser; leave the `with` block to end it."""

    def __init__(self, program: str, folder: Path, *, video: Path | None = None) -> None:
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        theirs_in, self._writing = os.pipe()
        self._reading, theirs_out = os.pipe()
        # High numbers first, so that neither is overwritten while they become 3 and 4 in the child.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, _FIRST_FREE) for end in (theirs_in, theirs_out)]
        command = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'profile'}",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            *([f"--use-file-for-fake-video-capture={video}"] if video else []),
            "about:blank",
        ]
        line = [f"exec 3<&{ends[0]} 4>&{ends[1]}", *(f"exec {end}>&-" for end in ends), 'exec "$@"']
        self._process = subprocess.Popen(
            ["bash", "-c", "; ".join(line), "browser", *command],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._session: str | None = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._reading, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def run(self, code: str) -> Any:
        """Return the value of an expression of JavaScript; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, code: str, *, seconds: float = 60.0) -> Any:
        """Wait until an expression is true, and return it."""
        until = time.monotonic() + seconds
        while not (found := self.run(code)):
            assert time.monotonic() < until, f"never: {code}\n{self.run('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address in a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def press(self, key: str, code: int) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def mouse(self, kind: str, selector: str) -> None:
        """Press or release the mouse in the middle of an element."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Return errors in the log and exceptions that nobody caught, so far."""
        self.run("1")
        found = []
        for event in self.events:
            details = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(details["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
                found.append(details["entry"]["text"])
        return found

    def requested(self) -> set[str]:
        """Return the addresses that the page asked for, so far."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {str(event["params"]["request"]["url"]) for event in sent}

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._writing)
        os.close(self._reading)
