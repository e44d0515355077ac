"""Accuracy of P4Q against full precision, other quantizers and the published code, on the same images.

    python tools/bench/accuracy.py --data DIR --sets cifar100,digits
    python tools/bench/accuracy.py --data DIR --seeds 0 --widths W8A8 --rows PTQ,P4Q --limit 400    # a quick look

``DIR/cifar100`` holds ``train.npz`` and ``test.npz`` (images, labels, class_names); its model is the CLIP of
photographs in ``photo_clip/``. The digits and their model come with the demo. With ``--sets caltech101`` the data is
``DIR/caltech101`` and the model the CLIP of real weights, ``MODELS/clip`` of ``--models-folder MODELS``, which
``real_models.py`` makes; its smallest class has 15 images, so add ``--shots 15``.

Each seed draws its own labelled images; they are learned from, calibrated on, and nothing else is. Test images are only
asked, once for each row.

The recipes are those of ``calibration/recipes``; for the digits, [learn] is the demo's. NNCF and Model Optimizer are
measured where they are installed (``pip install 'p4q-edge[baselines]'``); where not, their rows say so.

A finished figure is kept under ``--work`` and taken from there as long as code, model and images are the same, so that
an interrupted run goes on; runs of one seed each may work side by side, before one that names all seeds.

Results go to ``results/accuracy-<data>-<date>.json`` and ``.md`` beside it;
``accuracy_table.py`` makes the README's table of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from accuracy_recipes import FLOAT, REPOSITORY, WIDTHS, Choice, recipe_of
from accuracy_rows import Answers, Row, Scene, all_rows
from accuracy_table import markdown, stem, summarize
from accuracy_tools import GRAPH_BATCH, UnavailableError, tool_versions
from asked import chosen_names, listed, tells_errors, whole_numbers
from real_photos import every_nth_class

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.statistics import metrics
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger("accuracy")

RESULTS = Path(__file__).with_name("results")
SETS = ("cifar100", "digits", "caltech101")
USUAL_SETS = SETS[:2]
SCHEMA_VERSION = 1
CODE = ("p4q_edge/**/*.py", "runtime/p4q_edge/**/*.py", "tools/bench/accuracy*.py", "calibration/**/*")
"""What decides a figure besides model and images."""
FLOAT_CODE = (
    *(f"p4q_edge/{room}/*.py" for room in ("data", "models", "learning", "recipe")),
    "p4q_edge/evaluation/ablation.py",
    "p4q_edge/evaluation/variants.py",
    "tools/bench/accuracy_r*.py",
    "calibration/**/*",
)
"""What decides one in full precision: no quantizer does."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder with cifar100/; the digits need none")
    parser.add_argument("--sets", default=",".join(USUAL_SETS), help=f"of {', '.join(SETS)} (%(default)s)")
    parser.add_argument("--models-folder", type=Path, default=Path(), help="where real_models.py put its models")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of caltech101, only every N-th class by name (%(default)s)"
    )
    parser.add_argument("--shots", type=int, default=16, help="labelled images of each class (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--widths", default=",".join(WIDTHS), help="default: %(default)s; FP32 is always measured")
    parser.add_argument("--rows", default="", help="only rows of these names, or that begin so; default: all")
    parser.add_argument("--limit", type=int, default=0, help="at most so many test images; 0: all")
    parser.add_argument("--epochs", type=int, default=0, help="of all learning, for a quick look; 0: the recipes' own")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"), help="finished figures (%(default)s)")
    parser.add_argument("--finished", action="store_true", help="write what is finished under --work; measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def chosen_rows(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows of the names that `chosen_names` takes."""
    names = set(chosen_names([row.name for row in rows], text))
    return [row for row in rows if row.name in names]


def code_digest(more: Sequence[str] = (), *, code: Sequence[str] = CODE) -> str:
    """SHA-256 of every file that decides a figure.

    Args:
        more: further patterns.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in (*code, *more) for path in REPOSITORY.glob(pattern) if path.is_file()):
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Finished:
    """Figures by row, width and seed, kept in a file while `key` stays the same.

    Args:
        ignore: parts of the stored key that need not be there.
    """

    def __init__(self, path: Path, key: dict[str, Any], *, ignore: Sequence[str] = ()) -> None:
        self.path, self.key = path, key
        self.figures: dict[str, dict[str, Any]] = {}
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if {name: part for name, part in stored["key"].items() if name not in ignore} == key:
                self.figures = stored["figures"]
                logger.info("%s: going on after %d figures", path, len(self.figures))
            else:
                logger.warning("%s was made by other code or options: starting again", path)

    def keep(self, name: str, figure: dict[str, Any]) -> None:
        """Add a figure and write the file."""
        self.figures[name] = figure
        text = json.dumps({"key": self.key, "figures": self.figures}, indent=1)
        atomic_write(self.path, text.encode(), force=True)


def measure(answers: Answers, labels: np.ndarray) -> dict[str, Any]:
    """Counts of one row under one seed."""
    return {
        "n": len(labels),
        "top1": float(metrics.top_k_correct(answers.logits, labels, 1).mean()),
        "top5": float(metrics.top_k_correct(answers.logits, labels, 5).mean()),
        "agreement": float((answers.logits.argmax(1) == answers.reference.argmax(1)).mean()),
        "agrees_with": answers.agrees_with,
    }


def ask(row: Row, scene: Scene, width: str) -> dict[str, Any]:
    """Run one row, or say why it cannot be run."""
    begin = time.monotonic()
    try:
        # The tools warn and print about themselves.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            figure = measure(row.answer(scene, width), scene.labels)
    except UnavailableError as error:
        logger.info("seed %d, %s %s: - (%s)", scene.seed, row.name, width, error)
        return {"missing": str(error)}
    seconds = time.monotonic() - begin
    logger.info("seed %d, %s %s: %.2f %% (%.0f s)", scene.seed, row.name, width, 100 * figure["top1"], seconds)
    return figure


def cells(rows: Sequence[Row], widths: Sequence[str]) -> Iterator[tuple[Row, str]]:
    """Each row with each of its widths that is asked for; rows of one width follow each other.

    What the float encoder needs beside full-precision rows comes last: it tells least.
    """
    wanted = [FLOAT, *widths]
    every = list(dict.fromkeys(width for row in rows for width in row.widths))
    for width in sorted(every, key=lambda w: wanted.index(w[:4]) if w[:4] in wanted else len(wanted)):
        if width[:4] in wanted:
            yield from ((row, width) for row in rows if width in row.widths and not _extra(row, width))
    yield from ((row, FLOAT) for row in rows if FLOAT in row.widths and _extra(row, FLOAT))


def _extra(row: Row, width: str) -> bool:
    return width == FLOAT and row.group != "full precision"


def figures_of(
    scene: Scene, rows: Sequence[Row], widths: Sequence[str], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Figures of one seed by row, width and seed: kept ones, and those that are missing measured."""
    finished, in_float = finished_of(args, f"{scene.choice.data}-{scene.seed}", scene_key(scene))
    found = {}
    for row, width in cells(rows, widths):
        name = f"{row.name}|{width}|{scene.seed}"
        file = in_float if row.group == "full precision" else finished
        if name not in file.figures and not args.finished:
            file.keep(name, ask(row, scene, width) | {"commit": provenance.git_commit(REPOSITORY)})
        found[name] = file.figures.get(name, {"missing": "not measured in this run"})
    return found


def run_set(choice: Choice, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every row on one data set; returns the document."""
    seeds = whole_numbers(args.seeds, option="--seeds")
    widths = listed(args.widths, tuple(WIDTHS), option="--widths")
    rows = chosen_rows(all_rows(recipe_of(choice, "int8").learn), args.rows)
    figures: dict[str, dict[str, Any]] = {}
    images: dict[str, str] = {}
    for seed in seeds:
        scene = Scene(choice, seed)
        key = scene_key(scene)
        figures |= figures_of(scene, rows, widths, args)
        images[str(seed)] = key["test"]
    commits = {figure["commit"] for figure in figures.values() if "commit" in figure}
    return {
        "schema_version": SCHEMA_VERSION,
        "data": choice.data,
        "classes": len(scene.source.class_names),
        "n": len(scene.labels),
        "shots": choice.shots,
        "seeds": seeds,
        "model": {"name": scene.source.model.info.name, "weights_sha256": key["weights"]},
        "test_sha256": images,
        "commit": ", ".join(sorted(commits)),
        "code_sha256": key["code"],
        "versions": provenance.versions() | tool_versions(),
        "machine": provenance.this_machine(),
        "created": provenance.now(),
        "command": command(args),
        "recipes": {width: recipe_sections(scene, width) for width in widths},
        "rows": [summarize(row, width, figures, seeds) for row, width in cells(rows, widths)],
    }


def finished_of(args: argparse.Namespace, name: str, key: dict[str, Any]) -> tuple[Finished, Finished]:
    """The figures of one data set under one seed: of quantized rows, and of those in full precision."""
    both = []
    for suffix, code in (("", CODE), ("-float", FLOAT_CODE)):
        path = args.work / f"{name}{suffix}.json"
        if args.finished:
            both.append(Finished(path, {part: key[part] for part in key if part != "code"}, ignore=("code",)))
        else:
            both.append(Finished(path, key | {"code": code_digest(code=code)}))
    return both[0], both[1]


def scene_key(scene: Scene) -> dict[str, Any]:
    """What decides the figures of one seed."""
    return {
        "code": code_digest(),
        "weights": scene.source.model.info.weights_sha256,
        "test": images_digest(scene),
        "shots": scene.choice.shots,
        "learn": dict(scene.choice.learn),
        "tools": tool_versions(),
    }


def images_digest(scene: Scene) -> str:
    """SHA-256 of the test images and labels."""
    state = hashlib.sha256()
    for part in scene.classifier.test.split(GRAPH_BATCH):
        state.update(part.numpy().tobytes())
    state.update(scene.labels.tobytes())
    return state.hexdigest()


def recipe_sections(scene: Scene, width: str) -> dict[str, Any]:
    """What a recipe says, but for its data and model, which are on one machine."""
    recipe = msgspec.to_builtins(scene.recipe(width))
    return {name: recipe[name] for name in ("quantization", "learn")}


def command(args: argparse.Namespace) -> list[str]:
    """The command that repeats this run; folders are named, not told."""
    words = ["python", "tools/bench/accuracy.py", "--data", "DIR"]
    words += ["--every", str(args.every)] if args.every > 1 else []
    for name in ("sets", "shots", "seeds", "widths", "rows", "limit", "epochs"):
        if value := getattr(args, name):
            words += [f"--{name}", str(value)]
    return words


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their tables."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # the tools give advice as warnings
    logger.setLevel(logging.INFO)
    for name in listed(args.sets, SETS, option="--sets"):
        learned = {"epochs": args.epochs} if args.epochs else {}
        step = args.every if name == "caltech101" else 1
        folder = every_nth_class(args.data, step, into=args.work)
        places = {"folder": folder, "models": args.models_folder}
        sizes = {"shots": args.shots, "limit": args.limit}
        choice = Choice(data=name, **places, **sizes, learn=learned, features=args.work / "features")
        document = run_set(choice, args)
        target = args.output / f"{stem(document)}.json"
        atomic_write(target, json.dumps(document, indent=1).encode() + b"\n", force=True)
        atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
        print(markdown(document))
        logger.info("wrote %s", target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
