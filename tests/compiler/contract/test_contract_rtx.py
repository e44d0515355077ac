"""TensorRT for RTX as it is: our code's names exist, and `build --engine out.rtx` runs on it here, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from p4q_edge.runtime.artifacts import read_bundle, read_card, verify_engine

TINY = Path(__file__).parents[2] / "runtime" / "data" / "tiny.p4q"
COMMAND = "from p4q_edge.runtime.cli.main import main; raise SystemExit(main())"

DESCRIBE = """
import json
def members(kind):
    return [name for name in dir(kind) if name == "__init__" or not name.startswith("_")]
import tensorrt as trt
print(json.dumps({name: members(kind) for name, kind in vars(trt.tensorrt_rtx).items() if isinstance(kind, type)}))
"""


@pytest.fixture(scope="module")
def described(real_builder: Callable[..., str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(real_builder(DESCRIBE).splitlines()[-1])
    return found


def test_what_we_use_of_both_libraries_and_of_this_one_exists(
    described: dict[str, list[str]], surface: dict[str, Any]
) -> None:
    asked = [*surface["classes"].items(), *surface["enums"].items()]
    asked += [*surface["rtx"]["classes"].items(), *surface["rtx"]["enums"].items()]
    missing = [f"{kind}.{name}" for kind, names in asked for name in names if name not in described.get(kind, [])]
    assert missing == []


def test_what_only_this_library_has_is_listed_apart(
    described: dict[str, list[str]], describe: Callable[[str], dict[str, Any]], surface: dict[str, Any]
) -> None:
    """Or code of the common part could use it, and fail on TensorRT 10.3."""
    oldest = describe("10.3.0")["classes"]
    for kind, names in surface["rtx"]["classes"].items():
        for name in names:
            assert name not in oldest.get(kind, {}), f"{kind}.{name}"


def test_the_double_has_no_member_that_the_library_lacks(described: dict[str, list[str]]) -> None:
    double: ModuleType = __import__("doubles.rtx", fromlist=["RTX_CLASSES"])
    for kind in double.RTX_CLASSES:
        real = next(
            name
            for name in (kind.__name__, f"I{kind.__name__}", *(b.__name__ for b in kind.__bases__))
            if name in described
        )
        ours = {name for name in vars(kind) if not name.startswith("_")}
        assert ours <= set(described[real]), kind.__name__


def run(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def built(real_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtx")
    done = run(real_environment, folder, "build", str(TINY), "--engine", "out.rtx", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    assert "out.rtx is experimental" in done.stderr
    assert "not run here" in done.stdout
    return folder / "out.rtx"


def test_an_engine_is_built_with_its_card_on_this_cpu(built: Path) -> None:
    card = read_card(built)
    verify_engine(built, card)
    assert sorted(path.name for path in built.parent.iterdir()) == ["out.rtx", "out.rtx.json"]
    assert card.backend == "tensorrt-rtx"
    assert card.built_with["tensorrt_rtx"] == "1.7.1.116"
    assert card.built_with["compute_capability"] == "8.0+"
    assert card.bundle_sha256 == read_bundle(TINY).sha256()
    assert card.measured is None


def test_wheels_for_cuda_12_compile_the_same(built: Path, cuda_12_environment: dict[str, str], tmp_path: Path) -> None:
    done = run(cuda_12_environment, tmp_path, "build", str(TINY), "--engine", "out.rtx", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    one, two = read_card(built).build, read_card(tmp_path / "out.rtx").build
    assert two.built_with == one.built_with
    timed = {"build_seconds": {}}
    assert msgspec.structs.replace(two.inspection, **timed) == msgspec.structs.replace(one.inspection, **timed)


def test_without_a_gpu_the_card_says_that_fp16_was_not_timed(built: Path) -> None:
    choice = read_card(built).build.inspection.choice
    if choice.reason.startswith("not measured, and FP16 not built: no CUDA driver is installed"):
        assert choice.kept == "int8"
    else:
        pytest.skip("this machine has a CUDA driver")


def test_its_kernel_list_stands_on_the_card(built: Path) -> None:
    inspection = read_card(built).build.inspection
    assert inspection.kernels > 0
    assert inspection.io["image"] == "uint8"
    assert {inspection.io[name] for name in ("logits", "embedding", "features")} <= {"float", "fp32"}
    # Both linears of the tiny model multiply INT8 with INT8, which NVIDIA's support matrix does not promise.
    assert inspection.gemms.get("int8", 0) >= 1
    assert inspection.build_seconds["int8"] > 0


def test_named_capabilities_are_compiled_for(real_environment: dict[str, str], tmp_path: Path) -> None:
    options = ["--capability", "8.9", "--capability", "12.0"]
    done = run(real_environment, tmp_path, "build", str(TINY), "--engine", "out.rtx", *options)
    assert done.returncode == 0, done.stderr
    assert read_card(tmp_path / "out.rtx").built_with["compute_capability"] == "8.9,12.0"
    done = run(real_environment, tmp_path, "build", str(TINY), "--engine", "orin.rtx", "--capability", "8.7")
    assert done.returncode == 2
    assert "expected compute capabilities of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, got 8.7" in done.stderr
    assert not (tmp_path / "orin.rtx").exists()


def test_without_a_gpu_a_run_says_that_the_driver_is_missing(real_environment: dict[str, str], built: Path) -> None:
    done = run(real_environment, built.parent, "selftest", "out.rtx")
    if "no CUDA driver is installed" not in done.stderr:
        pytest.skip("this machine has a CUDA driver")
    assert done.returncode == 3


def test_the_doctor_knows_it(real_environment: dict[str, str], tmp_path: Path) -> None:
    done = run(real_environment, tmp_path, "doctor", "--json")
    (found,) = [item for item in json.loads(done.stdout)["findings"] if item["subject"] == "TensorRT for RTX"]
    assert (found["status"], found["message"].split(",")[0]) == ("ok", "1.7.1.116")
