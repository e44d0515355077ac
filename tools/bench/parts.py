"""What each part of P4Q brings: prompts, adapter, residual and teachers, beside other heads on the same images.

    python tools/bench/parts.py --data DIR --models-folder MODELS
    python tools/bench/parts.py --sets digits --seeds 0 --widths W4A4 --rows "P4Q" --kinds tested     # a quick look

``DIR/cifar100`` holds ``train.npz`` and ``test.npz``, ``DIR/caltech101`` class folders, and ``MODELS/clip`` the CLIP of
real weights that ``real_models.py`` makes; the digits come with the demo. Each seed shares out the images: labelled
ones (16 of each class; 15 of Caltech-101), some without labels, and tested ones. The encoder of each width is
calibrated on the labelled images alone; its features are computed once and kept under ``--work``.

Four kinds of figures: `cross-validated` on the labelled images and, where these are too few for that, `held-out` on the
images without labels, by which alone a default may be chosen; `tested`; and `base-to-new`, where half of the classes
are learned. Results go to ``results/parts-<date>.json`` and ``.md`` beside it.
Every answer stays under ``--work``; a
figure that is there already is not measured again. With ``--minutes`` what is not finished by then is left
out, and the tables say so.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as LateError
from pathlib import Path
from typing import Any

import torch
from accuracy_recipes import FLOAT
from asked import listed, tells_errors, whole_numbers
from parts_rows import BY_NAME, KINDS, cells
from parts_scene import SHOTS, Place, encode, features_of, open_scene
from parts_table import write

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger("parts")

RESULTS = Path(__file__).with_name("results")
WIDTHS = (FLOAT, "W8A8", "W4A8", "W4A4")
NAMES = "names"
"""Kind of a figure that holds no answers, but which images they are about."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder with cifar100/ and caltech101/")
    parser.add_argument("--models-folder", type=Path, default=Path(), help="where real_models.py put its models")
    parser.add_argument("--sets", default=",".join(SHOTS), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--widths", default=",".join(WIDTHS), help="default: %(default)s")
    parser.add_argument("--kinds", default="tested,cross-validated,base-to-new", help="default: %(default)s")
    parser.add_argument("--rows", default="", help="only these, divided by semicolons; default: all")
    parser.add_argument("--shots", type=int, default=0, help="labelled images of each class; 0: 16, of Caltech-101 15")
    parser.add_argument("--limit", type=int, default=0, help="at most so many test images; 0: all")
    parser.add_argument("--no-corruptions", action="store_true", help="leave corrupted images out of new features")
    parser.add_argument("--steps", type=int, default=0, help="of all learning, for a quick look; 0: the rows' own")
    parser.add_argument("--device", default="cpu", help="of encoders and learning (%(default)s)")
    parser.add_argument("--on-cpu", default="digits", help="sets that stay on the CPU (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0: this one alone (%(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop by then; 0: when all is measured")
    parser.add_argument("--work", type=Path, default=Path("build/parts"), help="features and figures (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def place_of(args: argparse.Namespace, name: str) -> Place:
    """Where a data set lies and runs."""
    device = "cpu" if name in args.on_cpu.split(",") else args.device
    places = {"data": args.data, "models": args.models_folder, "work": args.work}
    less = {"shots": args.shots, "limit": args.limit, "steps": args.steps, "corrupted": not args.no_corruptions}
    return Place(**places, device=device, **less)


def work_of(args: argparse.Namespace) -> Path:
    """Where features and figures are kept: of other numbers of labelled images apart, as they have the same names."""
    work: Path = args.work / f"shots-{args.shots}" if args.shots else args.work
    return work


def begin() -> None:
    """Set up a process of the pool."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def encode_scene(name: str, seed: int, place: Place, width: str) -> dict[str, Any]:
    """Compute a scene's features, and tell which images answers are about."""
    scene = open_scene(name, seed, place)
    encode(scene, width)
    split = scene.source.split
    return {
        "tested": list(split.test.names),
        "labelled": list(split.train.names),
        "held out": list(scene.source.unlabelled.names) if scene.source.unlabelled is not None else [],
        "classes": len(split.train.class_names),
    }


def measure(kind: str, row: str, name: str, seed: int, place: Place, width: str) -> dict[str, Any]:
    """One cell: whether each image is named rightly, as a text of 0 and 1, other figures, and the seconds it took."""
    start = time.monotonic()
    scene, features = open_scene(name, seed, place), features_of(name, seed, place, width)
    found = KINDS[kind](scene, BY_NAME[row], width, features)
    right = {part: "".join(map(str, values.int().tolist())) for part, values in found.items() if values.ndim}
    others = {part: round(float(value), 6) for part, value in found.items() if not value.ndim}
    return {"right": right, "others": others, "seconds": round(time.monotonic() - start, 2)}


_REPEATED = (
    *("sets", "seeds", "widths", "kinds", "rows", "shots"),
    *("limit", "steps", "device", "on_cpu", "jobs", "minutes"),
)
"""Options that a record of a run repeats."""


class Figures:
    """Figures by their names, kept in a file of lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                figure = json.loads(line)
                self.found[figure.pop("name")] = figure
            logger.info("%s: going on after %d figures", path, len(self.found))

    def keep(self, name: str, figure: dict[str, Any]) -> None:
        """Add one."""
        self.found[name] = figure
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **figure}) + "\n")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what is missing, features first, until all is done or the time is over."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    sets, seeds = listed(args.sets, tuple(SHOTS), option="--sets"), whole_numbers(args.seeds, option="--seeds")
    kinds = listed(args.kinds, tuple(KINDS), option="--kinds")
    scenes = [(name, seed, place_of(args, name)) for seed in seeds for name in reversed(sets)]
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = pool_of(args.jobs)
    try:
        encoders = [FLOAT, *(width for width in args.widths.split(",") if width != FLOAT)]
        jobs: dict[Future[dict[str, Any]], str] = {}
        for width in encoders:
            for name, seed, place in scenes:
                known = f"{NAMES}|{width}|{name}|{seed}"
                # What an earlier version kept does not tell which images are held out.
                told = "held out" in figures.found.get(known, {})
                if not told or not open_file(place, name, seed, width):
                    jobs[pool.submit(encode_scene, name, seed, place, width)] = known
        collect(jobs, figures, deadline)
        wanted = [word for word in args.rows.split(";") if word]
        jobs = {}
        for kind, row, width in cells(args.widths.split(",")):
            for name, seed, place in scenes:
                cell = f"{kind}|{row.name}|{width}|{name}|{seed}"
                if kind in kinds and (not wanted or row.name in wanted) and cell not in figures.found:
                    jobs[pool.submit(measure, kind, row.name, name, seed, place, width)] = cell
        collect(jobs, figures, deadline)
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # one that is in the midst of a cell would go on for minutes
            process.terminate()


class Inline(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Run and return what came of it."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:  # noqa: BLE001 (as a pool does)
            future.set_exception(error)
        return future


def pool_of(jobs: int) -> Executor:
    """Where cells are run."""
    if not jobs:
        return Inline()
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=begin)


def open_file(place: Place, name: str, seed: int, width: str) -> bool:
    """Whether features are kept."""
    return (place.work / f"{name}-{seed}-{width}.safetensors").is_file()


def collect(jobs: dict[Future[dict[str, Any]], str], figures: Figures, deadline: float) -> None:
    """Keep the results as they come; a cell that fails is told of and left out."""
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    try:
        for done, job in enumerate(as_completed(jobs, timeout=left), 1):
            try:
                figures.keep(jobs[job], job.result())
            except Exception as error:  # noqa: BLE001 (one cell of hundreds)
                logger.error("%s failed: %s: %s", jobs[job], type(error).__name__, error)
            if done % 20 == 0:
                logger.info("%d of %d, %s", done, len(jobs), jobs[job])
    except LateError:
        logger.warning("time is over: cells that are not measured: %d", sum(not job.done() for job in jobs))


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their tables."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work = work_of(args)
    args.work.mkdir(parents=True, exist_ok=True)
    figures = Figures(args.work / "figures.jsonl")
    run(args, figures)
    document = {
        "schema_version": 1,
        "command": command(args),
        "created": provenance.now(),
        "machine": provenance.this_machine(),
        "versions": provenance.versions(),
        "commit": provenance.git_commit(Path(__file__).parents[2]),
        "figures": figures.found,
    }
    atomic_write(args.work / "document.json", json.dumps(document).encode() + b"\n", force=True)
    print(write(document, args.output).read_text(encoding="utf-8"))
    return 0


def command(args: argparse.Namespace) -> list[str]:
    """The command that repeats this run; folders are named, not told."""
    words = ["python", "tools/bench/parts.py", "--data", "DIR", "--models-folder", "MODELS"]
    for name in _REPEATED:
        if value := getattr(args, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--no-corruptions"] if args.no_corruptions else words


if __name__ == "__main__":
    sys.exit(main())
