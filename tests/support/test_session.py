"""What the fixtures of every test stand on: whether there is a GPU, and logging as it was."""

from __future__ import annotations

import logging
from pathlib import Path

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")


def has_gpu() -> bool:
    return any(Path(device).exists() for device in _GPU_DEVICES)


def forget_logging() -> None:
    logging.captureWarnings(False)
    for name in ("p4q_edge", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
