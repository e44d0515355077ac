"""Write one handwritten digit of each class, none of which was learned from, as PNG files to classify.

python tools/demo_images.py build/demo.p4q build/demo.images
"""

from __future__ import annotations

import argparse
from pathlib import Path

from p4q_edge.demo import demo_images
from p4q_edge.runtime.artifacts import read_bundle

SIDE = 128  # pixels; 8 x 8 are hard to look at


def main() -> None:
    """Write the images, replacing older ones: they are the same for the same bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle of the demo; its index names the images learned from")
    parser.add_argument("folder", type=Path, help="folder to write to")
    args = parser.parse_args()

    learned = {image.name for image in read_bundle(args.bundle).manifest.data_index.learned}
    images, labels, class_names = demo_images()
    args.folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(class_names):
        index = next(i for i, of in enumerate(labels) if of == label and f"digits[{i}]" not in learned)
        images[index].resize((SIDE, SIDE), resample=0).save(args.folder / f"{name.replace(' ', '-')}.png")


if __name__ == "__main__":
    main()
