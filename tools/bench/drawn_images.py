"""How near W8A8 stays to full precision with ranges of drawn images (`demo:leaves`), in place of photographs.

    python tools/bench/drawn_images.py --data DIR --models-folder FOLDER

Models and images are those of ``fidelity.py``: each is asked about the same 96 photographs. Writes
``results/drawn-images-<date>.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accuracy import REPOSITORY, RESULTS
from asked import listed, tells_errors
from fidelity import measures
from fidelity_models import MODELS, Subject, open_subject
from fidelity_tools import reference_features
from real_models import Place
from torch import Tensor

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.data import pixels
from p4q_edge.data.readers import read_calibration_images
from p4q_edge.models import Batches, encode_batches
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import DRAWN_IMAGES
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

FEW = 6
"""As many as a bundle has golden samples."""
HEAD = ("model", "ranges of", "cosine, mean", "1st percentile", "least", "same neighbour", "n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_samples/ and cifar100/")
    parser.add_argument("--models-folder", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--models", default="vit,photo", help="of fidelity.py, between commas (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def calibration_sets(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Images to measure ranges on, with what they are called."""
    photographs = subject.tower.train
    yield f"{len(photographs)} photographs", photographs
    yield f"{FEW} photographs", photographs[:FEW]
    drawn = pixels(read_calibration_images(DRAWN_IMAGES), subject.tower.model.preprocess)
    yield f"{len(drawn)} drawn images", drawn


def rows(subject: Subject) -> Iterator[tuple[str, ...]]:
    """A row for each set."""
    model = subject.tower.model
    reference = reference_features(subject.tower)
    for name, images in calibration_sets(subject):
        encoder = calibrate_encoder(model, images, QuantScheme()).encoder
        found = measures(encode_batches(encoder, Batches.of(model, subject.tower.test)).numpy(), reference)
        cosines = [f"{found[key]:.5f}" for key in ("cosine_mean", "cosine_p1", "cosine_min")]
        yield (MODELS[subject.name], name, *cosines, f"{found['same_neighbour']:.1%}", str(found["n"]))


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the table."""
    args = parse(argv)
    torch.set_num_threads(1)
    place = Place(data=args.data, output=args.models_folder, cache=None)
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * 2 + ["--:"] * 5) + " |"]
    for name in listed(args.models, tuple(MODELS), option="--models"):
        for row in rows(open_subject(name, place, seed=args.seed)):
            lines.append("| " + " | ".join(row) + " |")
            sys.stderr.write(lines[-1] + "\n")
    date = provenance.now()[:10]
    text = (
        "# Ranges of drawn images\n\nW8A8 of the default scheme, features against the float image tower on the same "
        f"photographs, seed {args.seed}. Commit {provenance.git_commit(REPOSITORY)[:12]}.\n\n`python "
        f"tools/bench/drawn_images.py --data DIR --models-folder FOLDER --models {args.models}`\n\n" + "\n".join(lines)
    )
    atomic_write(args.output / f"drawn-images-{date}.md", (text + "\n").encode(), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
