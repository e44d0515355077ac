"""The kernels of a compiled engine, from the list that TensorRT for RTX writes to its log.

Its inspector needs a loaded engine, and loading needs a GPU; the list says the same: a line for each kernel.
"""

from __future__ import annotations

import re
from typing import Any

MARK = "LayerType: "
"""What only messages with the list have."""
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[",
    re.MULTILINE,
)
_OUTPUTS = re.compile(r"\], Outputs: \[(.*?)\], TacticName: ")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dimensions>[\d,-]*)\].*?Datatype: (?P<type>\w+)")


def read_kernel_list(text: str) -> list[dict[str, Any]]:
    """Return the kernels as the engine inspector of TensorRT 11 would describe them.

    Args:
        text: messages of the log, one after the other.
    """
    layers = []
    for line in text.splitlines():
        found = _LINE.match(line)
        outputs = _OUTPUTS.search(line)
        if found is not None:
            layers.append(
                {
                    "Name": found["name"],
                    "LayerType": found["kind"],
                    "Inputs": _tensors(found["inputs"]),
                    "Constants": _tensors(found["constants"]),
                    "Outputs": _tensors(outputs[1] if outputs else ""),
                }
            )
    return layers


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {
            "Name": found["name"],
            "Dimensions": [int(size) for size in found["dimensions"].split(",") if size],
            "Datatype": found["type"],
        }
        for found in _TENSOR.finditer(text)
    ]
