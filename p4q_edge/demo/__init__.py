"""The built-in demo: a small CLIP of printed glyphs, and real handwriting to adapt it to.

The model (`model/`, an open_clip `local-dir:`) was pre-trained by `tools/train_demo_clip.py` on glyphs
rendered from fonts and has never seen handwriting. The images are the 1,797 handwritten digits of
scikit-learn, which come with that package: nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.demo.leaves import LEAVES, draw_leaves
from p4q_edge.runtime.errors import CorruptArtifactError

if TYPE_CHECKING:
    import numpy as np
    import open_clip
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["CLASS_NAMES", "LEAVES", "MODEL_DIR", "TEMPLATES", "demo_images", "draw_leaves", "load_demo_model"]

MODEL_DIR = Path(__file__).parent / "model"
CLASS_NAMES = tuple(
    f"digit {word}" for word in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
)
# The captions of the pre-training: the text tower knows no other words.
TEMPLATES = (
    "a photo of the {}.",
    "a photo of a {}.",
    "a photo of the {}",
    "the {}",
    "{}",
    "{}.",
    "an image of the {}.",
    "a picture of one {}.",
    "a scan of the printed {}.",
    "a low resolution photo of the {}.",
    "a blurry photo of the {}.",
    "a noisy black and white photo of the {}.",
    "a close-up photo of the small {} on a plain background.",
    "a low contrast photo of the large {}, white on black or black on white.",
)
_BLACK_TO_WHITE = 16  # load_digits counts the inked pixels of 4 x 4 cells


def load_demo_model() -> tuple[open_clip.CLIP, dict[str, Any]]:
    """Load the shipped demo CLIP.

    Returns:
        The model (float32, eval mode, on the CPU) and its `open_clip_config.json`: `model_cfg`,
        `preprocess_cfg`, `license`, `provenance`.

    Raises:
        CorruptArtifactError: A file of the model is missing.
    """
    # open_clip imports torch and is imported here so that the package stays cheap to look at.
    import open_clip

    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        if not (MODEL_DIR / name).is_file():
            raise CorruptArtifactError(
                f"the demo model needs {MODEL_DIR / name}, which is missing: reinstall p4q-edge, "
                "or in a checkout run `python tools/train_demo_clip.py --force`"
            )
    config = json.loads((MODEL_DIR / "open_clip_config.json").read_text(encoding="utf-8"))
    model = open_clip.create_model(f"local-dir:{MODEL_DIR}", precision="fp32", device="cpu")
    return model.eval(), config


def demo_images() -> tuple[list[Image], NDArray[np.int64], tuple[str, ...]]:
    """Return the handwritten digits of scikit-learn, white on black.

    Returns:
        1,797 images (mode "L", 8 x 8, 0 to 255), their labels ((1797,) int64, 0 to 9) and the ten class names.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    # scikit-learn takes a second to import and only the demo needs it.
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / _BLACK_TO_WHITE)).astype(np.uint8)  # (images, 8, 8)
    return [Image.fromarray(image) for image in pixels], digits.target.astype(np.int64), CLASS_NAMES
