"""The whole device side on a real GPU with a real TensorRT: build, card, selftest, graphs, threads.

Where there is no GPU these tests are skipped and counted; where TensorRT is missing they skip and say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the tiny bundle, built once by the command."""
    pytest.importorskip("tensorrt", reason="a GPU, but no TensorRT")
    bundle = Path(__file__).parents[2] / "data" / "tiny.p4q"
    path = tmp_path_factory.mktemp("plan") / "out.plan"
    assert main(["build", str(bundle), "--engine", str(path), "--max-batch", "4"]) == 0
    return path


def test_the_card_tells_what_was_built_and_measured(plan: Path) -> None:
    card = read_card(plan)
    assert set(card.build.inspection.rows) == {"int8", "fp16"}
    assert card.build.inspection.kernels > 0
    assert card.built_with["typing"] == "strong"
    assert sorted(path.name for path in plan.parent.iterdir() if not path.name.startswith("timing-")) == [
        "out.plan",
        "out.plan.json",
    ]


def test_selftest_passes(plan: Path) -> None:
    assert main(["selftest", str(plan)]) == 0


@pytest.mark.parametrize("backend", ["driver", "cuda-bindings", "pycuda"])
def test_every_batch_and_every_replay_gives_the_golden_values(plan: Path, backend: Any) -> None:
    if backend == "pycuda":
        pytest.importorskip("pycuda.driver", reason="pycuda is not installed")
    golden = read_card(plan).golden_samples()
    engine = TensorRTEngine.open(plan, read_card(plan), backend=backend)
    for batch in (1, 1, 1, 4, 4, 4, 2, 1):
        outputs = engine.run(golden.image[:batch])
        np.testing.assert_allclose(outputs["embedding"], golden.embedding[:batch], atol=0.05)
    assert engine.graph_refusals == ([] if backend != "pycuda" else engine.graph_refusals)
    assert all(time > 0 for time in engine.device_times_ms(golden.image[:1], 5))
    engine.close()


def test_futures_of_many_requests_agree_with_single_runs(plan: Path) -> None:
    golden = read_card(plan).golden_samples()
    engine = TensorRTEngine.open(plan, read_card(plan))
    single = [engine.run(golden.image[index : index + 1])["logits"] for index in range(4)]
    futures = [engine.submit(golden.image[index % 4 : index % 4 + 1]) for index in range(64)]
    for index, future in enumerate(futures):
        np.testing.assert_allclose(future.result(timeout=60)["logits"], single[index % 4], atol=1e-3)
    engine.close()


def test_the_bundle_used_here_is_the_committed_one(plan: Path, tiny_bundle: Path) -> None:
    assert read_card(plan).bundle_sha256 == read_bundle(tiny_bundle).sha256()
