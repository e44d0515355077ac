"""What `p4q-edge build` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import BackendName

if TYPE_CHECKING:
    from p4q_edge.runtime.builders.build import BuildOptions


@dataclass(frozen=True, kw_only=True)
class ZeroShotRequest:
    """An engine without labelled images: which classes, and what else is not the recipe's.

    Attributes:
        class_names: or a file of them.
        calibration: images without labels; None takes those of the recipe, or else drawn ones.
        model: name of a CLIP in place of a recipe's.
        pretrained: its weights.
    """

    class_names: tuple[str, ...] | Path
    calibration: str | None = None
    model: str | None = None
    pretrained: str = ""


@dataclass(frozen=True, kw_only=True)
class RecipeRequest:
    """Which recipe is run, and which of its keys are overridden; what is None stays as it is.

    Attributes:
        path: None takes `p4q.toml` of the current folder, or else the built-in demo.
        device: of PyTorch, `auto`, `cpu`, `cuda` or `cuda:N`.
        log_dir: where learning curves go; None writes none.
        keep_float: added to what the recipe keeps in high precision.
        zero_shot: learn nothing, and take these classes.
    """

    path: Path | None = None
    seed: int | None = None
    device: str | None = None
    log_dir: Path | None = None
    quantize_attention: bool | None = None
    max_cosine_loss: float | None = None
    max_top1_drop: float | None = None
    keep_float: tuple[str, ...] = ()
    zero_shot: ZeroShotRequest | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was asked for."""
        return self == RecipeRequest()


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `build` was asked for.

    Attributes:
        engine: file to write.
        options: how it is built.
        bundle: what it is built from; None runs the recipe.
        backend: overrides the suffix of the engine.
        recipe: what is run without a bundle.
        force: replace bundle and engine, and run what made them again.
        quiet: show no progress.
        dry_run: say what would be built, and build nothing.
        print_config: write the resolved recipe, and build nothing.
    """

    engine: Path
    options: BuildOptions
    bundle: Path | None = None
    backend: BackendName | None = None
    recipe: RecipeRequest = RecipeRequest()
    force: bool = False
    quiet: bool = False
    dry_run: bool = False
    print_config: bool = False
