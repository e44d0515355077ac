"""What the two wheels contain, and that they form one namespace however they are installed."""

from __future__ import annotations

import json
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

RUNTIME, TOOLKIT = "p4q-edge-runtime", "p4q-edge"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def modules(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_the_wheel_of_the_runtime_has_the_runtime_only(wheels: dict[str, Path], repository: Path) -> None:
    content = names(wheels[RUNTIME])
    assert modules(repository / "runtime") <= content
    outside = {name for name in content if ".dist-info/" not in name and not name.startswith("p4q_edge/runtime/")}
    assert outside == {"p4q_edge/__main__.py"}


def test_the_wheel_of_the_toolkit_has_no_module_of_the_runtime(wheels: dict[str, Path], repository: Path) -> None:
    content = names(wheels[TOOLKIT])
    assert {f"p4q_edge/{name}" for name in modules(repository / "p4q_edge")} <= content
    assert {name for name in content if name.startswith("p4q_edge/runtime/")} == set()


@pytest.mark.parametrize("name", [RUNTIME, TOOLKIT])
def test_a_wheel_leaves_the_namespace_open(wheels: dict[str, Path], name: str) -> None:
    assert "p4q_edge/__init__.py" not in names(wheels[name])


@pytest.mark.parametrize("name", [RUNTIME, TOOLKIT])
def test_a_wheel_has_its_licence_and_description(wheels: dict[str, Path], name: str) -> None:
    assert any(member.endswith(".dist-info/licenses/LICENSE") for member in names(wheels[name]))
    assert metadata(wheels[name])["License-Expression"] == "Apache-2.0"
    assert len(metadata(wheels[name]).get_payload()) > 200, "README.md is the description"


def test_types_are_declared(wheels: dict[str, Path]) -> None:
    assert "p4q_edge/runtime/py.typed" in names(wheels[RUNTIME])


def test_the_toolkit_needs_exactly_this_runtime(wheels: dict[str, Path]) -> None:
    version = metadata(wheels[RUNTIME])["Version"]
    assert f"p4q-edge-runtime=={version}" in metadata(wheels[TOOLKIT]).get_all("Requires-Dist")
    assert metadata(wheels[TOOLKIT])["Version"] == version


def test_the_runtime_needs_no_framework(wheels: dict[str, Path]) -> None:
    required = [line for line in metadata(wheels[RUNTIME]).get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.partition(">")[0] for line in required} == {"msgspec", "numpy", "pillow", "safetensors"}


CODE = """
import importlib.util, json, p4q_edge
from importlib.metadata import entry_points
from p4q_edge import runtime
points = [point for point in entry_points(group="p4q_edge.commands")]
print(json.dumps({
    "namespace": getattr(p4q_edge, "__file__", None),
    "classifier": runtime.ZeroShotClassifier.__name__,
    "toolkit": importlib.util.find_spec("p4q_edge.quant.affine").origin,
    "missing": [point.name for point in points if importlib.util.find_spec(point.module) is None],
    "commands": [point.name for point in points],
}))
"""


@pytest.mark.parametrize(
    ("order", "editable"),
    [
        ((RUNTIME, TOOLKIT), ()),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (
                ((TOOLKIT, RUNTIME), ()),
                ((TOOLKIT, RUNTIME), (RUNTIME,)),
                ((RUNTIME, TOOLKIT), (TOOLKIT,)),
            )
        ),
        ((RUNTIME, TOOLKIT), (RUNTIME, TOOLKIT)),
    ],
)
def test_both_distributions_share_the_namespace(
    sharing_environment: Any, wheels: dict[str, Path], repository: Path, order: Any, editable: Any
) -> None:
    sources = {RUNTIME: repository / "runtime", TOOLKIT: repository}
    for name in order:
        what = ["--editable", str(sources[name])] if name in editable else [str(wheels[name])]
        sharing_environment.install("--no-deps", "--no-index", "--no-build-isolation", *what)
    found = json.loads(sharing_environment.check("python", "-c", CODE))
    assert found["namespace"] is None
    assert found["classifier"] == "ZeroShotClassifier"
    inside = sharing_environment.folder if TOOLKIT not in editable else repository
    assert Path(found["toolkit"]).is_relative_to(inside)
    assert found["missing"] == []
    assert len(found["commands"]) == len(set(found["commands"])) > 0
    assert "SUBCOMMAND" in sharing_environment.check("p4q-edge", "--help")
