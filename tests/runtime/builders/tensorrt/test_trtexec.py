"""The command of trtexec on the card, and the script that compares with it, with trtexec replaced."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.artifacts import TensorRTOptions, read_bundle, read_card
from p4q_edge.runtime.builders.tensorrt.trtexec import trtexec_command

# What the script needs of the real one: it builds a file, and times a file in turns.
TRTEXEC = """#!/usr/bin/env bash
echo "$*" >> "$(dirname "$0")/log"
for argument; do
    case $argument in
        --onnx=*) cp "${argument#*=}" "$(dirname "$0")/seen.onnx" ;;
        --saveEngine=*) echo built > "${argument#*=}" ;;
        --loadEngine=*) [[ -f ${argument#*=} ]] || exit 1
            echo "[I] GPU Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.25 ms, percentile(90%) = 2" ;;
    esac
done
"""


def command(flavour: str = "int8", *, strong: bool = True, batch: int = -1, **options: Any) -> list[str]:
    text = trtexec_command(
        TensorRTOptions(**options),
        flavour=flavour,
        shape=(batch, 3, 224, 192),
        strong=strong,
        workspace=options.get("workspace_mib", 0) << 20 or None,
        timing_cache="timing-trt10.3.0-sm87-orin.cache",
    )
    return shlex.split(text)


def test_the_command_says_all_that_decides_a_plan() -> None:
    assert command(min_batch=2, opt_batch=4, max_batch=8, workspace_mib=100, optimization_level=5, device=1) == [
        "trtexec",
        "--onnx=model.onnx",
        "--stronglyTyped",
        "--minShapes=image:2x3x224x192",
        "--optShapes=image:4x3x224x192",
        "--maxShapes=image:8x3x224x192",
        "--memPoolSize=workspace:104857600B",
        "--builderOptimizationLevel=5",
        "--profilingVerbosity=detailed",
        "--timingCacheFile=timing-trt10.3.0-sm87-orin.cache",
        "--device=1",
        "--skipInference",
        "--saveEngine=trtexec.plan",
    ]


def test_what_was_not_asked_for_is_left_out() -> None:
    assert not any("Shapes" in word for word in command(batch=4))
    assert not any("memPool" in word or "timing" in word for word in command(timing_cache=False))
    weak = command(strong=False)
    assert {"--int8", "--fp16"} <= set(weak)
    assert "--stronglyTyped" not in weak
    moved = command(version_compatible=True, hardware_compatibility="ampere_plus")
    assert {"--versionCompatible", "--hardwareCompatibilityLevel=ampere+"} <= set(moved)


@pytest.mark.parametrize("flavour", ["fp16", "int8-linears"])
def test_a_plan_whose_network_was_changed_has_no_command(flavour: str) -> None:
    assert command(flavour) == []


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the PATH with the double of trtexec."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trtexec").write_text(TRTEXEC)
    (folder / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def deployed(device: Any, tiny_bundle: Path, tmp_path: Path, capsys: Any) -> Path:
    from p4q_edge.runtime.cli.main import main

    engine = tmp_path / "out.plan"
    assert main(["build", str(tiny_bundle), "--engine", str(engine), "--precision", "int8", "-q"]) == 0
    return engine


def compare(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = repository / "tools" / "trtexec_compare.sh"
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_the_script_builds_with_the_cards_command_and_times_both(
    repository: Path, path: Path, deployed: Path, tiny_bundle: Path
) -> None:
    card = read_card(deployed)
    assert card.built_with["trtexec"].startswith("trtexec --onnx=model.onnx --stronglyTyped --minShapes=image:1x3x8x8 ")
    done = compare(repository, deployed, tiny_bundle, 4)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"(?m)^[123] +1\.25 +1\.25$", done.stdout)) == 3
    assert (path / "seen.onnx").read_bytes() == read_bundle(tiny_bundle).model("fp16")
    calls = (path / "log").read_text().splitlines()
    assert f"trtexec {calls[0]}" == card.built_with["trtexec"]
    timed = [call for call in calls if "--loadEngine" in call]
    assert len(timed) == 6
    assert all("--shapes=image:4x3x8x8" in call for call in timed)


def test_the_script_says_why_it_cannot_compare(repository: Path, path: Path, deployed: Path, tiny_bundle: Path) -> None:
    assert compare(repository).returncode == 2
    text = deployed.with_name("out.plan.json").read_text()
    changed = re.sub(r'"trtexec": ?"(?:[^"\\]|\\.)*"', '"trtexec": ""', text)
    assert changed != text
    deployed.with_name("out.plan.json").write_text(changed)
    done = compare(repository, deployed, tiny_bundle)
    assert done.returncode == 2
    assert "names no command of trtexec: only INT8 plans have one" in done.stderr
    (path / "trtexec").unlink()
    if shutil.which("trtexec") is None:
        assert compare(repository, deployed, tiny_bundle).returncode == 3


def test_the_model_of_the_command_is_two_members_of_the_bundle(tiny_bundle: Path) -> None:
    with zipfile.ZipFile(tiny_bundle) as archive:
        joined = archive.read("graph.fp16.onnx") + archive.read("weights.onnx")
    assert joined == read_bundle(tiny_bundle).model("fp16")
