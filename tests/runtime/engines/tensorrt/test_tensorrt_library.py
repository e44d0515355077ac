"""Importing TensorRT, its log, and the comparison of a card with this machine."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.engines.tensorrt import library as tensorrt_library
from p4q_edge.runtime.engines.tensorrt.library import (
    check_compatible,
    import_tensorrt,
    l4t_release,
    machine_facts,
    make_logger,
    platform_name,
    problems,
    version_tuple,
)
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError

HERE = {
    "tensorrt": "10.3.0",
    "gpu": "Orin",
    "compute_capability": "8.7",
    "platform": "linux-aarch64",
}


def test_without_tensorrt_the_error_names_this_python_and_both_ways(monkeypatch: Any, cuda: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        EnvironmentNotAbleError,
        match=rf"Python {sys.version_info.major}\.{sys.version_info.minor} \(Orin is there\).*--system-site-packages",
    ):
        import_tensorrt(cuda.facts)


def test_an_older_tensorrt_is_refused(monkeypatch: Any, cuda: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.2.0"))
    with pytest.raises(EnvironmentNotAbleError, match=r"expected TensorRT 10\.3 or newer, got 10\.2\.0"):
        import_tensorrt(cuda.facts)


@pytest.mark.parametrize(
    ("version", "release", "capability", "refused"),
    [
        ("10.13.3.9", "# R38 (release), REVISION: 2.0", "8.7", True),
        ("10.15.1", "# R39 (release), REVISION: 2.0", "8.7", True),
        ("10.16.1.11", "# R39 (release), REVISION: 2.0", "8.7", False),
        ("10.13.3.9", "# R38 (release), REVISION: 2.0", "11.0", False),
        ("10.13.3.9", "# R36 (release), REVISION: 4.3", "8.7", False),
        ("10.13.3.9", "", "8.7", False),
    ],
)
def test_on_jetpack_7_a_tensorrt_without_code_for_orin_is_refused(
    monkeypatch: Any, cuda: Any, version: str, release: str, capability: str, refused: bool
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    monkeypatch.setattr(tensorrt_library, "l4t_release", lambda: release)
    facts = replace(cuda.facts, compute_capability=capability)
    if not refused:
        assert import_tensorrt(facts).__version__ == version
        return
    with pytest.raises(
        EnvironmentNotAbleError, match=rf"TensorRT {version} of JetPack 7 has no code for Orin .*JetPack 7\.2 or newer"
    ):
        import_tensorrt(facts)


def test_the_log_keeps_errors_and_passes_all_on(double: Any, caplog: Any) -> None:
    log = make_logger(double.trt)
    assert log.initialized
    levels = double.trt.ILogger
    with caplog.at_level(logging.DEBUG, logger=tensorrt_library.__name__):
        assert problems(log) == "TensorRT gave no reason"
        log.log(levels.WARNING, "odd")
        log.log(levels.INFO, "fine")
        log.log(levels.VERBOSE, "chatter")
        log.log(levels.ERROR, "first\n reason")
        log.log(levels.INTERNAL_ERROR, "second")
    assert problems(log) == "first reason | second"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "TensorRT: odd"),
        (logging.DEBUG, "TensorRT: fine"),
        (logging.ERROR, "TensorRT: first\n reason"),
        (logging.ERROR, "TensorRT: second"),
    ]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"tensorrt": "10.16.2"}, "tensorrt"),
        ({"compute_capability": "8.9", "gpu": "RTX 4090"}, "compute_capability"),
        ({"platform": "linux-x86_64"}, "platform"),
        ({"tensorrt": "11.4.1", "platform": "linux-x86_64"}, "tensorrt, platform"),
    ],
)
def test_a_plan_of_elsewhere_is_refused_naming_both_sides(change: dict[str, str], differing: str) -> None:
    built = {**HERE, **change}
    message = (
        f"out.plan was built by TensorRT {built['tensorrt']} for {built['gpu']} (compute capability "
        f"{built['compute_capability']}, {built['platform']}); this device has TensorRT 10.3.0 for Orin (compute "
        f"capability 8.7, linux-aarch64) (differing: {differing}). TensorRT plans do not move between versions, GPUs "
        "or platforms. Run: p4q-edge build MODEL.p4q --engine out.plan --force"
    )
    with pytest.raises(IncompatibleEngineError, match=re.escape(message)):
        check_compatible(built, HERE, engine=Path("out.plan"))


def test_a_plan_of_here_is_accepted() -> None:
    check_compatible(HERE, HERE, engine=Path("out.plan"))


def test_a_card_that_says_nothing_is_refused() -> None:
    with pytest.raises(IncompatibleEngineError, match="TensorRT unknown for an unknown GPU"):
        check_compatible({}, HERE, engine=Path("out.plan"))


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ({"version_compatible": "true"}, {"tensorrt": "11.4.1"}, True),
        ({"version_compatible": "true", "tensorrt": "11.0.0"}, {}, False),
        ({"version_compatible": "true"}, {"tensorrt": "11.4.1", "compute_capability": "8.9"}, False),
        ({"hardware_compatibility": "ampere_plus"}, {"compute_capability": "9.0"}, True),
        ({"hardware_compatibility": "ampere_plus"}, {"compute_capability": "7.5"}, False),
        ({"hardware_compatibility": "same_compute_capability"}, {}, True),
        ({"hardware_compatibility": "same_compute_capability"}, {"compute_capability": "8.6"}, False),
    ],
)
def test_compatible_plans_move_only_as_far_as_they_were_made_to(
    built: dict[str, str], here: dict[str, str], fits: bool
) -> None:
    built, here = {**HERE, **built}, {**HERE, **here}
    if fits:
        check_compatible(built, here, engine=Path("out.plan"))
    else:
        with pytest.raises(IncompatibleEngineError):
            check_compatible(built, here, engine=Path("out.plan"))


@given(st.lists(st.integers(0, 99), min_size=2, max_size=4))
def test_versions_compare_by_number(parts: list[int]) -> None:
    assert version_tuple(".".join(map(str, parts))) == (parts[0], parts[1])


def test_machine_facts_are_texts_and_name_what_binds_a_plan(double: Any, cuda: Any) -> None:
    found = machine_facts(double.trt, cuda.facts)
    assert all(isinstance(value, str) for value in found.values())
    assert found["tensorrt"] == double.trt.__version__
    assert found["compute_capability"] == "8.7"
    assert found["platform"] == platform_name()


def test_l4t_release_is_the_first_line_of_jetsons_file(tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    assert l4t_release(release) == ""
    release.write_text("# R36 (release), REVISION: 4.3\nmore\n", encoding="utf-8")
    assert l4t_release(release) == "# R36 (release), REVISION: 4.3"
