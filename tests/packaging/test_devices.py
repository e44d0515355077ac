"""Tensors are made on a device that is named: what torch makes without one lies on the CPU, wherever the others are."""

import ast
from pathlib import Path

MAKERS = frozenset(
    {"arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor"}
) | {"scalar_tensor", "zeros"}

ON_THE_CPU = {
    "baselines/as_released.py": "nothing seen yet: an empty tensor that is replaced",
    "data/augmentation.py": "pixels lie on the CPU",
    "data/cross_validation.py": "indices of images",
    "evaluation/ablation.py": "indices of images",
    "graph/proof/layers.py": "graphs are compared on the CPU",
    "graph/trace.py": "graphs are traced on the CPU",
    "learning/training.py": "a number for a message",
    "models/adapter.py": "moved with the module, whose first numbers are drawn on the CPU",
    "models/folded_classifier.py": "moved with the module",
    "models/team.py": "messages between processes",
    "quant/attention_products.py": "moved with the module; a scale that is a number",
    "quant/observers.py": "counts of histograms, and shares that are numbers",
    "quant/rotation.py": "a basis, moved to the module's device",
    "quant/search.py": "errors of candidates, which are numbers",
    "stages/cross_validation.py": "indices of images",
    "stages/top1_limit.py": "indices of images",
}
"""Modules that may, and why."""


def made_without_device(source: str) -> list[int]:
    """Return the lines on which a tensor is made by torch without a device; generators are those of the CPU."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in MAKERS
        and not any(keyword.arg in ("device", "generator") for keyword in call.keywords)
    ]


def test_every_tensor_is_made_on_a_named_device(repository: Path) -> None:
    toolkit = repository / "p4q_edge"
    found = {
        str(path.relative_to(toolkit)): lines
        for path in sorted(toolkit.rglob("*.py"))
        if (lines := made_without_device(path.read_text()))
    }
    assert {name: lines for name, lines in found.items() if name not in ON_THE_CPU} == {}
    assert set(ON_THE_CPU) == set(found)  # a reason that is no longer needed goes


def test_the_look_finds_what_it_looks_for() -> None:
    source = "import torch\na = torch.zeros(3)\nb = torch.zeros(3, device=a.device)\nc = torch.arange(len(a))\n"
    assert made_without_device(source) == [2, 4]
