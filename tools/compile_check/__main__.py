"""Compile an ONNX model or a bundle with NVIDIA's compiler on the CPU and say what it fused.

usage: python tools/compile_check MODEL.onnx|MODEL.p4q [--batch N] [--capability SM86|SM89|SM120]
                                      [--cuda 13|12] [--list]

Prints one JSON document. Exit code 0: it compiled; 1: it did not; 3: the compiler cannot be had here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from kernels import CAPABILITIES, compile_model
from toolchain import FLAVOURS, ToolchainError, find_toolchain


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="compile_check", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a complete ONNX file, or a bundle, whose FP16 graph is taken")
    parser.add_argument("--batch", type=int, default=8, help="largest number of images at once (default 8)")
    parser.add_argument("--capability", choices=CAPABILITIES, default=CAPABILITIES[0], help="default: %(default)s")
    parser.add_argument("--cuda", choices=FLAVOURS, default=FLAVOURS[0], help="whose wheels (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="add the list of kernels")
    arguments = parser.parse_args()
    try:
        toolchain = find_toolchain(cuda=arguments.cuda)
        with tempfile.TemporaryDirectory() as folder:
            model = complete_model(arguments.model, Path(folder))
            compilation = compile_model(model, toolchain, batch=arguments.batch, capability=arguments.capability)
    except ToolchainError as error:
        print(f"compile_check: {error}", file=sys.stderr)
        return 3
    document = compilation.summary()
    if arguments.list:
        document["list"] = [str(kernel) for kernel in compilation.kernels]
    print(json.dumps(document, indent=1))
    return 0 if compilation.built else 1


def complete_model(path: Path, folder: Path) -> Path:
    """Return an ONNX file: `path` itself, or the FP16 graph of a bundle with its weights."""
    if path.suffix != ".p4q":
        return path
    from p4q_edge.runtime.artifacts import read_bundle

    model = folder / "model.onnx"
    model.write_bytes(read_bundle(path).model("fp16"))
    return model


if __name__ == "__main__":
    sys.exit(main())
