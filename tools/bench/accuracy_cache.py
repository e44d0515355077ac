"""Features of the accuracy comparison, kept between runs: the frozen encoders take most of its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from p4q_edge.learning import CachedFeatures, read_tensors, write_tensors

Encoded = tuple[CachedFeatures, Tensor]
"""Features of the labelled images' views, and of the test images ``(images, dim)``."""


def kept(path: Path | None, key: str, make: Callable[[], Encoded]) -> Encoded:
    """Features from a file that was made under the same key, or made now and written there.

    Args:
        path: None keeps nothing.
        key: digest of everything that decides the features.
    """
    if path is None:
        return make()
    stored = read_tensors(path, key=key)
    if stored is None:
        train, test = make()
        tensors = {"student": train.student, "teacher": train.teacher, "labels": train.labels, "test": test}
        write_tensors(path, tensors, key=key)
        return train, test
    tensors = {name: torch.clone(tensor) for name, tensor in stored[0].items()}
    return CachedFeatures(**{name: tensors[name] for name in ("student", "teacher", "labels")}), tensors["test"]
