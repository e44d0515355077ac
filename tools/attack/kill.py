"""Kill `p4q-edge` with SIGKILL at every boundary of a write, and at random times; then look at what is left.

python tools/attack/kill.py build/demo.p4q --kills 100

Each trial copies a working deployment, runs one command and kills it: before or after one of its calls of the system
that change a folder or reach the disk, or after a random time. Then the engine must classify as before or as rebuilt,
the same command must succeed, and no temporary file may stay.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = """
import os, pathlib, signal, sys
at, made = int(os.environ["P4Q_ATTACK_AT"]), [0]
def wrap(own):
    def call(*arguments, **keywords):
        number = made[0]
        made[0] += 1
        if at == 2 * number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = own(*arguments, **keywords)
        if at == 2 * number + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
    setattr(os, name, wrap(getattr(os, name)))
from p4q_edge.runtime.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(f"boundaries {2 * made[0]}", file=sys.stderr)
os._exit(code)
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One command in a folder of its own.

    Attributes:
        name: of the row in the table.
        arguments: of `p4q-edge`, with `{}` for the folder.
        engine: whether there is a working engine before.
    """

    name: str
    arguments: tuple[str, ...]
    engine: bool = True


TRIALS = (
    Trial(name="build", arguments=("build", "{}/model.p4q", "--engine", "{}/out.onnx"), engine=False),
    Trial(name="build --force", arguments=("build", "{}/model.p4q", "--engine", "{}/out.onnx", "--force")),
    Trial(name="head add", arguments=("head", "add", "{}/out.onnx", "{}/model.p4q", "--name", "own", "--force")),
    Trial(name="classify --json", arguments=("classify", "{}/out.onnx", "{}/image.png", "--json")),
)


def run(arguments: tuple[str, ...], folder: Path, *, at: int = -1, seconds: float | None = None) -> tuple[int, str]:
    """Run `p4q-edge` and return its exit code (negative: the signal that ended it) and stderr.

    Args:
        arguments: with `{}` for the folder.
        folder: also holds its cache.
        at: number of the boundary at which it kills itself; -1 for none.
        seconds: after which it is killed.
    """
    environment = {**os.environ, "P4Q_EDGE_CACHE": str(folder / "cache"), "P4Q_ATTACK_AT": str(at)}
    command = [sys.executable, "-c", BOUNDARY, *(argument.format(folder) for argument in arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
    return process.returncode, errors.decode(errors="replace")


def judge(trial: Trial, folder: Path) -> str | None:
    """Return what is wrong after a kill, or None."""
    classify = ("classify", "{}/out.onnx", "{}/image.png", "--json")
    if trial.engine:
        code, errors = run(classify, folder)
        if code:
            return f"the engine is unusable: {errors.strip()[-200:]}"
    code, errors = run(trial.arguments, folder)
    if code and not (trial.name == "build" and "exists already" in errors):
        return f"the same command fails: {errors.strip()[-200:]}"
    code, errors = run(classify, folder)
    if code:
        return f"the engine is unusable after the next run: {errors.strip()[-200:]}"
    left = [path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".next"))]
    return f"left behind: {left}" if left else None


def prepare(bundle: Path, folder: Path) -> Path:
    """Write a folder with bundle, engine and image, and return it."""
    import numpy as np
    from PIL import Image

    shutil.copy(bundle, folder / "model.p4q")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    code, errors = run(TRIALS[1].arguments, folder)
    if code:
        raise SystemExit(f"the build fails without an attack: {errors}")
    return folder


def attack(bundle: Path, *, kills: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Return, by command, how often what came out of `kills` kills: `ok`, or what is wrong.

    Half of the kills are at boundaries, all of a command's where the budget reaches, half at random times.
    """
    generator = random.Random(seed)
    found: dict[str, Counter[str]] = {trial.name: Counter() for trial in TRIALS}
    with tempfile.TemporaryDirectory() as name:
        ready = Path(name) / "ready"
        ready.mkdir()
        prepare(bundle, ready)
        share = max(1, kills // len(TRIALS))
        for trial in TRIALS:
            _, errors = _in_copy(trial, ready, at=-1)
            last = int(errors.rsplit("boundaries ", 1)[1].split()[0])
            boundaries = generator.sample(range(last), min(last, max(1, share // 2)))
            for number in range(share):
                at = boundaries[number] if number < len(boundaries) else -1
                seconds = None if at >= 0 else generator.uniform(0.0, 2.0)
                problem, _ = _in_copy(trial, ready, at=at, seconds=seconds, judged=True)
                found[trial.name][problem or "ok"] += 1
    return found


def _in_copy(
    trial: Trial, ready: Path, *, at: int, seconds: float | None = None, judged: bool = False
) -> tuple[str | None, str]:
    folder = ready.with_name("trial")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready, folder)
    if not trial.engine:
        for path in folder.glob("out.onnx*"):
            path.unlink()
    _, errors = run(trial.arguments, folder, at=at, seconds=seconds)
    return (judge(trial, folder) if judged else None), errors


def main() -> int:
    """Run the attack and print its table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=100, help="in all (default: %(default)s; about 5 s each)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = attack(args.bundle, kills=args.kills, seed=args.seed)
    for name, counts in found.items():
        print(f"{name}: {sum(counts.values())} killed, {sum(counts.values()) - counts['ok']} failed")
        for problem, count in counts.items():
            if problem != "ok":
                print(f"  {count} x {problem}")
    return int(any(set(counts) - {"ok"} for counts in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
