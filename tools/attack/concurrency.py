"""Use one engine from many threads while heads are switched, engines are opened and closed, and files come and go.

python tools/attack/concurrency.py build/demo.p4q --seconds 60

Every answer must be that of one of the heads, exactly; every error must be documented.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

THREADS = 4


def attack(bundle: Path, *, seconds: float, seed: int = 0) -> Counter[str]:
    """Return how often each thing was done, and under `WRONG` or an error's class what must not happen."""
    from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier, build_engine
    from p4q_edge.runtime.artifacts import BUILT_IN, add_head, heads_folder

    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "out.onnx"
        build_engine(bundle, engine)
        add_head(engine, bundle, name="kept")
        stored = heads_folder(engine) / "kept.safetensors"
        spare = Path(name) / "spare.safetensors"
        shutil.copy(stored, spare)
        options = RuntimeOptions(threads=1, decode_threads=1)
        shared = ZeroShotClassifier(engine, heads="kept", options=options)
        _, _, height, width = shared._engine.input_shape
        images = list(np.random.default_rng(seed).integers(0, 256, (8, height, width, 3), dtype=np.uint8))
        expected = {}
        for head in (BUILT_IN, "kept"):
            shared.use_head(head)
            expected[head] = [shared.embed(image) for image in images]

        def classify(generator: random.Random) -> str:
            number = generator.randrange(len(images))
            found = shared.embed(images[number])
            fits = any(np.array_equal(found, answers[number]) for answers in expected.values())
            return "classified" if fits else "WRONG answer"

        def switch(generator: random.Random) -> str:
            shared.use_head(generator.choice((BUILT_IN, "kept")))
            return "switched"

        def reopen(generator: random.Random) -> str:
            with ZeroShotClassifier(engine, options=options) as other:
                return "opened" if other.class_names else "WRONG names"

        def move(generator: random.Random) -> str:
            if generator.random() < 0.5:
                stored.unlink(missing_ok=True)
                return "vanished"
            temporary = stored.with_name(f".{generator.random()}.new")
            shutil.copy(spare, temporary)
            temporary.replace(stored)
            return "appeared"

        found = _together([classify] * THREADS + [switch, reopen, move], seconds=seconds, seed=seed)
        shared.close()
        return found


def _together(works: list[Callable[[random.Random], str]], *, seconds: float, seed: int) -> Counter[str]:
    """Let each work run in a thread of its own for a time."""
    found: Counter[str] = Counter()
    lock, end = threading.Lock(), time.monotonic() + seconds

    def run(number: int, work: Callable[[random.Random], str]) -> None:
        from p4q_edge.runtime.errors import P4QEdgeError

        generator = random.Random(f"{seed} {number}")
        while time.monotonic() < end:
            try:
                what = work(generator)
            except P4QEdgeError:
                what = "refused"
            except Exception as error:  # noqa: BLE001  # that is what is looked for
                what = f"{type(error).__name__}: {error}"[:200]
            with lock:
                found[what] += 1

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


EXPECTED = {"classified", "switched", "opened", "vanished", "appeared", "refused"}


def main() -> int:
    """Run the attack and print its table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = attack(args.bundle, seconds=args.seconds, seed=args.seed)
    for what, count in found.most_common():
        print(f"{count:>9}  {what}")
    return int(bool(set(found) - EXPECTED))


if __name__ == "__main__":
    raise SystemExit(main())
