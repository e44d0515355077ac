"""Where a run folder keeps what."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Where the stages of one run keep their results."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def encoder(self) -> Path:
        return self.folder / "calibrated.safetensors"

    @property
    def features(self) -> Path:
        """A folder; see `FeatureStore`."""
        return self.folder / "features"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "learning.safetensors"

    @property
    def baselines(self) -> Path:
        """A JSON list of `Baseline`: the comparison of methods that the report shows."""
        return self.folder / "baselines.json"

    @property
    def bundle_record(self) -> Path:
        """What the bundle beside the folder was exported from."""
        return self.folder / "bundle.json"

    @property
    def learned(self) -> Path:
        return self.folder / "learned.safetensors"

    @property
    def teacher(self) -> Path:
        """The checkpoint of a learned teacher."""
        return self.folder / "teacher.safetensors"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.json"
