"""Build, validate and classify random sets of own photographs: does the main job go through, whatever the set?

Each set takes some class folders at random (5 to 20 classes, 2 to 16 labelled photographs each, a few more to test on)
and one of two small models, and runs the command line from the photographs to labels. The table counts what was
refused and why, and shows how near each exported graph came to the limit that the noise of its own model sets.

Run: python tools/bench/own_photos.py --data FOLDER --sets 100 --output own-photos.json
where FOLDER holds a folder of photographs for each class.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from own_photos_table import markdown

from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.cli.main import main as p4q_edge
from p4q_edge.runtime.machine import cpu
from p4q_edge.runtime.statistics import NOISE_FACTOR
from p4q_edge.runtime.storage import atomic_write

PHOTO_CLIP = Path(__file__).parent / "photo_clip"
MODELS = {"demo": "demo", "photo": f"local-dir:{PHOTO_CLIP}"}
CLASSES, SHOTS = (5, 20), (2, 16)
TEST_IMAGES = 4
SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """One set: which model learns which classes from how many photographs each."""

    number: int
    model: str
    classes: tuple[str, ...]
    shots: int


@dataclass(kw_only=True)
class Row:
    """What became of one set.

    Attributes:
        codes: exit code of each command that ran.
        error: last line of the first command that failed.
        right, answers: of `classify` on the photographs that were not learned from.
        share_of_limit: largest loss of cosine of each graph, as a share of the limit from its noise.
        unsound: what the bundle records of a graph that is not sound.
    """

    number: int
    model: str
    classes: int
    shots: int
    codes: dict[str, int] = field(default_factory=dict)
    error: str = ""
    right: int = 0
    answers: int = 0
    share_of_limit: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    unsound: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all commands ended with 0, and the graph for the other backend is sound too."""
        return bool(self.codes) and not any(self.codes.values()) and not self.unsound


def photographs(folder: Path) -> dict[str, list[Path]]:
    """Return the photographs of each class folder."""
    return {
        one.name: sorted(path for path in one.iterdir() if path.suffix.lower() in SUFFIXES)
        for one in sorted(folder.iterdir())
        if one.is_dir()
    }


def draw_sets(found: dict[str, list[Path]], *, sets: int, seed: int) -> list[PhotoSet]:
    """Draw sets, alternately for each model."""
    generator = np.random.default_rng(seed)
    drawn = []
    for number in range(sets):
        shots = int(generator.integers(SHOTS[0], SHOTS[1] + 1))
        enough = [name for name, paths in found.items() if len(paths) > shots]
        count = min(int(generator.integers(CLASSES[0], CLASSES[1] + 1)), len(enough))
        classes = tuple(str(name) for name in generator.choice(enough, size=count, replace=False))
        drawn.append(PhotoSet(number=number, model=list(MODELS)[number % len(MODELS)], classes=classes, shots=shots))
    return drawn


def lay_out(one: PhotoSet, found: dict[str, list[Path]], folder: Path) -> None:
    """Copy the photographs of a set into `folder/train` and `folder/test`."""
    generator = np.random.default_rng([one.number, one.shots])
    for name in one.classes:
        order = [found[name][int(index)] for index in generator.permutation(len(found[name]))]
        for part, paths in (("train", order[: one.shots]), ("test", order[one.shots : one.shots + TEST_IMAGES])):
            target = folder / part / name
            target.mkdir(parents=True)
            for path in paths:
                shutil.copyfile(path, target / path.name)


def command(*arguments: object) -> tuple[int, str, str]:
    """Run one command in this process and return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = p4q_edge([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def run_set(one: PhotoSet, found: dict[str, list[Path]], *, steps: int) -> Row:
    """Build, validate and classify one set in a folder of its own."""
    started = time.perf_counter()
    row = Row(number=one.number, model=one.model, classes=len(one.classes), shots=one.shots)
    with tempfile.TemporaryDirectory(prefix="own-photos-") as name:
        folder = Path(name)
        lay_out(one, found, folder)
        recipe, engine = folder / "p4q.toml", folder / "out.onnx"
        recipe.write_text(
            f'seed = {one.number}\n[model]\nname = "{MODELS[one.model]}"\n[data]\ntrain = "{folder / "train"}"\n'
            f'test = "{folder / "test"}"\nshots = {one.shots}\n[learn]\nsteps = {steps}\n'
        )
        commands = {
            "build": ("build", "--recipe", recipe, "--engine", engine),
            "selftest": ("selftest", engine),
            "validate": ("validate", engine),
            "classify": ("classify", engine, folder / "test", "--json"),
        }
        for what, arguments in commands.items():
            code, out, err = command(*arguments)
            row.codes[what] = code
            if code:
                row.error = " ".join((err or out).strip().splitlines()[-1:])
                break
            if what == "classify":
                answers = json.loads(out)["predictions"]
                row.answers = len(answers)
                row.right = sum(answer["label"] == Path(answer["source"]).parent.name for answer in answers)
        if engine.with_suffix(".p4q").is_file():
            manifest = read_bundle(engine.with_suffix(".p4q")).manifest
            row.unsound = dict(manifest.unsound or {})
            _record(row, manifest.parity.flat())
    row.seconds = time.perf_counter() - started
    return row


def _record(row: Row, parity: dict[str, float]) -> None:
    row.noise = {key: value for key, value in parity.items() if ".noise_" in key}
    for graph in ("fp32", "fp32_unoptimized", "fp16"):
        cosine = parity.get(f"{graph}.cosine_embedding")
        worst = parity.get(f"{graph.partition('_')[0]}.noise_worst_loss")
        if cosine is not None and worst:
            row.share_of_limit[graph] = (1.0 - cosine) / (NOISE_FACTOR**2 * worst)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sets and keep the table after each, so that a run that is cut off has its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first set that is run")
    parser.add_argument("--last", type=int, help="number of the last set that is run (default: all)")
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer (200 is the default of a recipe)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the table goes beside it as .md")
    arguments = parser.parse_args(argv)
    found = photographs(arguments.data)
    rows = []
    stop = None if arguments.last is None else arguments.last + 1
    for one in draw_sets(found, sets=arguments.sets, seed=arguments.seed)[arguments.first : stop]:
        rows.append(run_set(one, found, steps=arguments.steps))
        document = {
            "command": f"own_photos.py --sets {arguments.sets} --steps {arguments.steps} --seed {arguments.seed}",
            "cpu": cpu.cpu(),
            "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
            "noise_factor": NOISE_FACTOR,
            "rows": [{**asdict(row), "passed": row.passed} for row in rows],
        }
        atomic_write(arguments.output, json.dumps(document, indent=1).encode(), force=True)
        atomic_write(arguments.output.with_suffix(".md"), markdown(document).encode(), force=True)
        print(f"{one.number:3} {one.model:5} {rows[-1].codes} {rows[-1].error} {rows[-1].seconds:.0f} s", flush=True)
    print(markdown(document))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
