"""What `p4q-edge validate` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from p4q_edge.runtime.choices import CpuBackend

_TYPED = (
    "data",
    "reference",
    "max_top1_drop",
    "threads",
    "limit",
    "batch_size",
    "seed",
    "device",
    "backend",
    "ood",
    "pairs",
)


@dataclass(frozen=True, kw_only=True)
class ValidateRequest:
    """What `validate` was asked for; paths as they were given. A report holds it, and `reproduce` passes it on again.

    Attributes:
        reference: bundle, recipe or run folder; None looks beside the engine.
        data: labelled images; None takes those of the reference.
        limit: largest number of images, drawn with the seed; 0 takes all.
        batch_size: images a batch.
        seed: of the bootstrap and of the limit.
        max_top1_drop: percentage points, see `Gates`.
        bench: a document of `p4q-edge bench` on this engine, to show beside the accuracy.
        ood: folder of images that show none of the classes.
        corruptions: also look at the images made worse, in four kinds and three strengths.
        pairs: table of images and captions.
        debug: name the first layer where engine and reference diverge.
        device: of the engine, and of PyTorch beside it; with `auto` that follows its recipe.
        backend: another library for CPUs than the one that the engine was built for.
        save_repro: folder for the smallest model that shows it, for a report to the runtime's authors.
        reports: files to write beside the engine's own report.
    """

    engine: Path
    reference: Path | None = None
    data: str | None = None
    limit: int = 0
    batch_size: int = 64
    seed: int = 0
    max_top1_drop: float | None = None
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None
    bench: Path | None = None
    ood: Path | None = None
    corruptions: bool = False
    pairs: Path | None = None
    debug: bool = False
    save_repro: Path | None = None
    reports: tuple[Path, ...] = ()

    def command(self) -> tuple[str, ...]:
        """Return the arguments that decide the figures, as they would be typed again after `p4q-edge`."""
        defaults = {field.name: field.default for field in fields(self)}
        words = ["validate", str(self.engine)]
        for name in _TYPED:
            value = getattr(self, name)
            if value != defaults[name]:
                words += ["--batch" if name == "batch_size" else f"--{name.replace('_', '-')}", str(value)]
        return (*words, *(f"--{name}" for name in ("corruptions", "debug") if getattr(self, name)))
