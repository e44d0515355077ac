"""A stage runs again after a change of its code; files of a run folder that were damaged are not taken."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from p4q_edge.data.few_shot import make_split
from p4q_edge.learning.tensor_file import read_tensors, write_tensors
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.observers import MagnitudeHistogram
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.storage import require_writable, unchanged
from p4q_edge.stages import export, pipeline
from p4q_edge.stages.export import bundle_key
from p4q_edge.stages.pipeline import learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source


@pytest.fixture
def source(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet]) -> Source:
    recipe = Recipe(
        seed=3,
        model=ModelSection(name="toy"),
        data=DataSection(train="toy", shots=4),
        quantization=QuantizationSection(observer="minmax"),
        learn=LearnSection(epochs=2, views=1),
    )
    split = make_split(toy_images(6), None, shots=4, seed=3, test_limit=0)
    digests = tuple(split.train.digests())
    return Source(
        recipe=recipe, model=toy_clip, split=split, templates=("{}",), class_prompts={}, train_digests=digests
    )


def edit(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the source of a room look changed in one function."""
    original = unchanged.package_sources

    def edited(name: str) -> dict[str, bytes]:
        sources = original(name)
        return (
            {path: text.replace(b"return", b"return 4 *", 1) for path, text in sources.items()}
            if name == room
            else sources
        )

    monkeypatch.setattr(unchanged, "package_sources", edited)


def run(source: Source, folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[list[str], pipeline.Learned]:
    """Run the stages and return which of them said that they were unchanged."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="p4q_edge"):
        learned = learn_stage(prepare(source, RunFiles(folder=folder)), RunFiles(folder=folder))
    said = [record.getMessage() for record in caplog.records if "unchanged" in record.getMessage()]
    return [text.partition(":")[0] for text in said], learned


def scales(learned: pipeline.Learned) -> list[float]:
    state = learned.prepared.calibrated.encoder.state_dict()
    return [float(value) for name, value in state.items() if name.endswith("input_scale")]


def test_scales_times_four_in_an_observer_are_noticed(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(source, tmp_path, caplog)[0] == []
    said, before = run(source, tmp_path, caplog)
    assert said == ["calibrate", "learn"]
    clip = MagnitudeHistogram.clip
    monkeypatch.setattr(MagnitudeHistogram, "clip", lambda self, *args, **options: 4 * clip(self, *args, **options))
    edit("p4q_edge.quant", monkeypatch)
    said, after = run(source, tmp_path, caplog)
    assert said == []
    assert np.mean(scales(after)) > 2 * np.mean(scales(before)) > 0


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ("p4q_edge.calibration", []),
        ("p4q_edge.runtime.images", []),
        ("p4q_edge.learning", ["calibrate"]),
        ("p4q_edge.graph", ["calibrate", "learn"]),
        ("p4q_edge.runtime.builders", ["calibrate", "learn"]),
    ],
)
def test_a_change_runs_the_stages_that_use_it(
    room: str,
    expected: list[str],
    source: Source,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, learned = run(source, tmp_path, caplog)
    bundle = bundle_key(learned)
    edit(room, monkeypatch)
    said, learned = run(source, tmp_path, caplog)
    assert said == expected
    assert (bundle_key(learned) != bundle) == (room != "p4q_edge.runtime.builders")


def test_the_bundle_depends_on_the_images_whose_results_it_records(
    source: Source, toy_images: Callable[[int], ImageSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, learned = run(source, tmp_path, caplog)
    before, test = bundle_key(learned), source.split.test
    assert bundle_key(learned) == before
    object.__setattr__(test, "read_bytes", lambda i: b"another")
    assert bundle_key(learned) != before


def test_every_single_bit_flip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([3]), "c": torch.tensor([True, False])}
    write_tensors(path, tensors, key="k", metadata={"epoch": "7"})
    whole = path.read_bytes()
    stored = read_tensors(path, key="k")
    assert stored is not None
    assert all(torch.equal(stored[0][name], value) for name, value in tensors.items())
    assert stored[1] == {"key": "k", "epoch": "7"}
    messages = set()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_tensors(path, key="k") is None, f"bit {bit} was not noticed"
        except CorruptArtifactError as error:
            messages.add(str(error).partition("(")[0])
    assert all(str(path) in message for message in messages)
    assert len(messages) >= 2


@pytest.mark.parametrize("name", ["encoder", "learned"])
def test_damaged_tensors_of_a_run_are_not_taken(
    name: str, source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(source, tmp_path, caplog)
    path: Path = getattr(RunFiles(folder=tmp_path), name)
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CorruptArtifactError, match="differ from the digest.*delete it and run the command again"):
        run(source, tmp_path, caplog)


def test_the_checkpoint_of_a_run_is_checked(source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = RunFiles(folder=tmp_path)
    run(source, tmp_path, caplog)
    files.learned.unlink()
    damaged = bytearray(files.checkpoint.read_bytes())
    damaged[-3] ^= 4
    files.checkpoint.write_bytes(damaged)
    with pytest.raises(CorruptArtifactError, match="learning.safetensors is damaged"):
        run(source, tmp_path, caplog)


def test_a_bundle_of_this_run_is_replaced_when_it_is_outdated_and_a_changed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(learned: object, path: Path, *, force: bool) -> None:
        require_writable(path, force=force)
        path.write_bytes(str(learned).encode())

    monkeypatch.setattr(export, "bundle_key", lambda learned: str(learned))
    monkeypatch.setattr(export, "export_bundle", write)
    bundle = tmp_path / "out.p4q"
    for learned in ("first", "second"):
        export.export_unless_current(learned, bundle, tmp_path)  # type: ignore[arg-type]
        assert bundle.read_text() == learned
    bundle.write_text("somebody's own")
    with pytest.raises(UsageError, match="exists already; add --force"):
        export.export_unless_current("third", bundle, tmp_path)  # type: ignore[arg-type]
    assert bundle.read_text() == "somebody's own"
