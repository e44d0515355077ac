"""`p4q-edge inspect --lint`: which rules of TensorRT and ONNX Runtime the graphs of an artifact break."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from p4q_edge.runtime.artifacts import card_path, read_bundle, read_card
from p4q_edge.runtime.cli import LintRow
from p4q_edge.runtime.errors import CorruptArtifactError, InputError

_REMAINDERS: tuple[Literal["fp16"], Literal["fp32"]] = ("fp16", "fp32")


def lint_artifact(path: Path) -> list[LintRow]:
    """Return the broken rules of both graphs of a bundle, or of an ONNX file, each with the graph's name.

    Quantized attention products are a mistake unless the bundle's manifest or the engine's card tells of them.

    Raises:
        InputError: neither a bundle nor an ONNX file.
        CorruptArtifactError: the file is not an ONNX model.
    """
    # Imported here: they take longer to import than the rest of `inspect` takes to run.
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from p4q_edge.graph import lint

    if not path.is_file() or path.suffix not in {".p4q", ".onnx"}:
        raise InputError(f"--lint reads a bundle (.p4q) or an ONNX file (.onnx), and {path} is neither. Name one.")
    if path.suffix == ".p4q":
        bundle = read_bundle(path)
        graphs = {f"graph.{remainder}": bundle.model(remainder) for remainder in _REMAINDERS}
        attentions = bundle.manifest.precision.quantized_attentions
    else:
        graphs = {path.name: path.read_bytes()}
        attentions = read_card(path).precision.quantized_attentions if card_path(path).is_file() else 0
    try:
        models = {name: onnx.load_from_string(data) for name, data in graphs.items()}
    except DecodeError as error:
        raise CorruptArtifactError(f"{path} is not an ONNX model: {error}. Build it again.") from error
    return [
        LintRow(graph=name, **asdict(finding))
        for name, model in models.items()
        for finding in lint(model, quantized_attention=attentions > 0)
    ]
