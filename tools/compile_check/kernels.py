"""Read the compiler's kernel list."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from toolchain import Toolchain, ToolchainError

WORKER = Path(__file__).with_name("worker.py")
HOST_ONLY = frozenset({"shape_call", "signal", "wait"})
"""Entries that launch nothing: shapes computed on the host, and the order of streams."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One entry of the list.

    Attributes:
        kind: gemm, correlation (a convolution), kgen (generated), runtime_fusion, ...
        label: the fused operations, or the ONNX node of a product; without the compiler's running numbers.
        inputs, outputs: element types, constants left out.
    """

    kind: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def is_attention(self) -> bool:
        return "_mha_" in self.label

    @property
    def is_product(self) -> bool:
        return self.kind in {"gemm", "runtime_fusion"} and not self.is_attention

    def __str__(self) -> str:
        return f"{self.kind} {self.label}: {' '.join(self.inputs) or '-'} -> {' '.join(self.outputs)}"


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What the compiler made of one model.

    Attributes:
        entries: every line of its list, as the published counts have them.
        kernels: those that launch something on the GPU.
    """

    parsed: bool
    built: bool
    entries: int
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...]
    plan_bytes: int

    def summary(self) -> dict[str, object]:
        """Return the figures that the tests assert, JSON-ready."""
        products = Counter(kernel.inputs[0] for kernel in self.kernels if kernel.is_product)
        return {
            "parsed": self.parsed,
            "built": self.built,
            "entries": self.entries,
            "kernels": len(self.kernels),
            "products": dict(products),
            "fused_attentions": sum(kernel.is_attention for kernel in self.kernels),
            "runtime_fusions": sum(kernel.kind == "runtime_fusion" for kernel in self.kernels),
            "uint8_kernels": sum("UInt8" in kernel.inputs for kernel in self.kernels),
            "kinds": dict(Counter(kernel.kind for kernel in self.kernels)),
            "warnings": list(self.warnings),
            "plan_bytes": self.plan_bytes,
        }


CAPABILITIES = ("SM86", "SM89", "SM120")
"""Ampere, Ada and Blackwell desktops. Orin (8.7) is not among those that TensorRT-RTX compiles for."""


def compile_model(
    model: Path, toolchain: Toolchain, *, batch: int = 8, capability: str = CAPABILITIES[0]
) -> Compilation:
    """Compile `model` for 1 to `batch` images and one compute capability, in a process of its own.

    Raises:
        ToolchainError: the process died; the compiler's own refusals are in the result.
    """
    command = [sys.executable, str(WORKER), str(model), str(batch), capability]
    done = subprocess.run(command, env=toolchain.environment(), capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolchainError(f"the compiler's process ended with {done.returncode}: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    kernels = [_parse(line) for line in found["kernels"]]
    return Compilation(
        parsed=found["parsed"],
        built=found["built"],
        entries=len(kernels),
        kernels=tuple(kernel for kernel in kernels if kernel.kind not in HOST_ONLY),
        warnings=tuple(dict.fromkeys([*found.get("errors", []), *found["warnings"]])),
        plan_bytes=found.get("plan_bytes", 0),
    )


def _parse(line: str) -> Kernel:
    name, kind = re.match(r"Name: (.*?), LayerType: (\w+)", line).groups()  # type: ignore[union-attr]
    return Kernel(
        kind=kind,
        label=_label(name),
        inputs=_types(line, "Inputs", "Constants"),
        outputs=_types(line, "Outputs", "TacticName"),
    )


def _label(name: str) -> str:
    name = re.sub(r"_myl\d+_\d+$", "", name)
    name = re.sub(r"_U\d+$", "", name)
    # Products that the compiler merged are joined names of values; their numbers change with every build.
    name = re.sub(r"__mye\d+", "__mye", name)
    return name.removeprefix("__myl_")


def _types(line: str, key: str, following: str) -> tuple[str, ...]:
    part = re.search(rf"{key}: \[(.*?)\], {following}", line)
    return tuple(re.findall(r"Datatype: (\w+)", part[1])) if part else ()
