"""Change files of a deployment, at rest and while they are loaded: nothing unverified may ever answer.

python tools/attack/tamper.py build/demo.p4q --loads 200 --flips 400

`flipper`: a process replaces engine and optimized copy by others all the time, by renames and in place, while engines
are loaded; each load must answer as the untouched engine, or be refused. `bits`: single bits of engine, copy and card
are flipped; each load must be refused, or answer the same (a bit that says nothing).
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

FLIP = """
import os, sys, itertools, time
folder, names = sys.argv[1], sys.argv[2:]
data = {name: [open(f"{folder}/{kind}/{name}", "rb").read() for kind in ("good", "evil")] for name in names}
print("ready", flush=True)
for number in itertools.count():
    for name in names:
        content, path = data[name][number % 2], f"{folder}/live/{name}"
        if number % 4 < 2:
            with open(path + ".new", "wb") as stream:
                stream.write(content)
            os.replace(path + ".new", path)
        else:
            with open(path, "r+b") as stream:
                stream.write(content)
                stream.truncate()
    time.sleep(0.0005 * (number % 7))
"""


def prepare(bundle: Path, folder: Path) -> tuple[Path, np.ndarray]:
    """Build an engine in `live`, keep it in `good`, and one with another answer in `evil`; return engine and answer."""
    from p4q_edge.runtime import build_engine

    for name in ("live", "good", "evil"):
        (folder / name).mkdir()
    engine = folder / "live" / "out.onnx"
    build_engine(bundle, engine)
    expected = answer(engine)
    for path in list((folder / "live").iterdir()):
        shutil.copy(path, folder / "good")
        shutil.copy(path, folder / "evil")
    for name in ("out.onnx", "out.onnx.optimized"):
        # The largest numbers of a model are its weights: another sign gives other answers from a valid model.
        path = folder / "evil" / name
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        for place in range(middle, middle + min(64, len(content) - middle)):
            content[place] ^= 0x80
        path.write_bytes(bytes(content))
    return engine, expected


def answer(engine: Path) -> np.ndarray:
    """Return the embeddings (n, dim) of an engine on the golden samples of its card."""
    from p4q_edge.runtime.artifacts import read_card
    from p4q_edge.runtime.engines import load_engine

    card = read_card(engine)
    loaded = load_engine(engine, card, threads=1)
    try:
        return np.asarray(loaded.run(card.golden_samples().image, ("embedding",))["embedding"])
    finally:
        loaded.close()


def outcome(engine: Path, expected: np.ndarray) -> str:
    """Return `same`, `refused`, or what is wrong with a load."""
    from p4q_edge.runtime.errors import P4QEdgeError

    try:
        found = answer(engine)
    except P4QEdgeError:
        return "refused"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        return f"{type(error).__name__}: {error}"[:200]
    return "same" if np.array_equal(found, expected) else "ANOTHER ANSWER"


def against_flipper(bundle: Path, *, loads: int) -> Counter[str]:
    """Load an engine whose files are replaced all the time; return how often what came of it."""
    with tempfile.TemporaryDirectory() as name:
        engine, expected = prepare(bundle, Path(name))
        command = [sys.executable, "-c", FLIP, name, "out.onnx", "out.onnx.optimized"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as flipper:
            try:
                assert flipper.stdout is not None
                flipper.stdout.readline()
                return Counter(outcome(engine, expected) for _ in range(loads))
            finally:
                flipper.kill()


def flipped_bits(bundle: Path, *, flips: int, seed: int = 0) -> Counter[str]:
    """Flip single bits of the files of an engine; return how often what came of it."""
    generator, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        engine, expected = prepare(bundle, Path(name))
        files = sorted((Path(name) / "good").iterdir())
        for number in range(flips):
            source = files[number % len(files)]
            content = bytearray(source.read_bytes())
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            live = engine.parent / source.name
            live.write_bytes(bytes(content))
            found[outcome(engine, expected)] += 1
            shutil.copy(source, live)
    return found


def main() -> int:
    """Run the attacks and print their tables; 1 if anything unverified answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--loads", type=int, default=200, help="against the flipper (default: %(default)s)")
    parser.add_argument("--flips", type=int, default=400, help="of single bits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tables = {
        "flipper": against_flipper(args.bundle, loads=args.loads),
        "bits": flipped_bits(args.bundle, flips=args.flips, seed=args.seed),
    }
    for name, counts in tables.items():
        print(f"{name}: {dict(counts)}")
    return int(any(set(counts) - {"same", "refused"} for counts in tables.values()))


if __name__ == "__main__":
    raise SystemExit(main())
