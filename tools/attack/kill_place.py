"""The folder in which commands are killed: a deployment with heads and photographs, and what a recipe makes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from kill_trials import DEPLOYMENT, RECIPE, RUNS

PHOTOGRAPHS = 36
_VISION = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16}
_TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
_PREPROCESS = {"size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def prepare(bundle: Path, folder: Path, run: Callable[[tuple[str, ...]], object], *, toolkit: bool) -> None:
    """Write a folder with a deployment and, with the toolkit, a run folder, its bundle and its engine.

    Args:
        bundle: of the deployment.
        folder: to fill.
        run: runs `p4q-edge` there, and raises where it fails.
        toolkit: whether to make what a recipe makes too.
    """
    import numpy as np
    from PIL import Image

    shutil.copy(bundle, folder / "model.p4q")
    (folder / "unlabelled").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "unlabelled" / f"{number}.png")
    shutil.copy(folder / "unlabelled" / "0.png", folder / "image.png")
    run(DEPLOYMENT[0])
    _photograph(folder)
    for command in DEPLOYMENT[1:]:
        run(command)
    _sign(folder / "signed.safetensors")
    if toolkit:
        _write_model(folder / "clip")
        (folder / "recipe.toml").write_text(RECIPE.format(seed=0))
        (folder / "other.toml").write_text(RECIPE.format(seed=1))
        for command in RUNS:
            run(command)


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _photograph(folder: Path) -> None:
    """Write images into folders of the classes that the engine takes them for, so that a calibration is worth it."""
    import numpy as np
    from PIL import Image

    from p4q_edge.runtime import ZeroShotClassifier

    generator = np.random.default_rng(0)
    with ZeroShotClassifier(folder / "out.onnx") as classifier:
        for name in classifier.class_names:
            (folder / "photos" / name).mkdir(parents=True)
        for number in range(PHOTOGRAPHS):
            coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
            answer = classifier.classify(image, top_k=1)
            assert not isinstance(answer, list)
            image.save(folder / "photos" / answer.label / f"{number}.png")


def _sign(head: Path) -> None:
    """Write a signature of a head's bytes, of no key; only who is told to trust keys looks at that."""
    from p4q_edge.runtime.artifacts import Signature, signature_path

    signature = Signature(artifact="head", sha256=digest(head) or "", public_key="", signature="")
    signature_path(head).write_text(json.dumps(msgspec.to_builtins(signature)))


def _write_model(folder: Path) -> None:
    """Write a CLIP of one block a tower with random weights: what is killed is the writing, not the computing."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    weights = open_clip.CLIP(32, _VISION, _TEXT).state_dict()  # type: ignore[arg-type]
    save_file(weights, folder / "open_clip_model.safetensors")
    model = {"embed_dim": 32, "vision_cfg": _VISION, "text_cfg": _TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": _PREPROCESS}))
