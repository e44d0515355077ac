"""Learning that was interrupted goes on to the same numbers; stages are taken from their files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learning_runs import learned_values, source_of, with_options

from p4q_edge.learning import checkpoint as checkpoints
from p4q_edge.learning.training import LearningRun
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import PromptLearner
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Prepared, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles


def _interrupt_at(stop: int, kind: type[BaseException]) -> Callable[[int, float], None]:
    def progress(epoch: int, loss: float) -> None:
        if epoch == stop:
            raise kind

    return progress


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    toy_clip: LoadedModel,
    toy_images: Callable[[int], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    views: int,
    recompute: bool,
) -> None:
    prepared = prepare(source_of(toy_clip, toy_images(12), views=views, epochs=12), RunFiles(folder=tmp_path / "run"))
    if recompute:  # the least limit of a recipe, 1 MiB, holds all of the toy
        limit = PromptLearner.limit_memory
        monkeypatch.setattr(PromptLearner, "limit_memory", lambda self, _: limit(self, 1))
    file = tmp_path / "learning.safetensors"
    whole = learned_values(prepared, LearningRun())
    with pytest.raises(KeyboardInterrupt):
        learned_values(prepared, LearningRun(checkpoint=file, key="k", progress=_interrupt_at(7, KeyboardInterrupt)))
    epochs: list[int] = []
    resumed = learned_values(
        prepared, LearningRun(checkpoint=file, key="k", progress=lambda epoch, _: epochs.append(epoch))
    )
    assert epochs[0] == 8  # nothing whole was lost
    assert list(tmp_path.glob("*.tmp")) == []
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0)


def test_a_checkpoint_of_another_run_is_not_resumed(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "learning.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learned_values(prepared, LearningRun(checkpoint=file, key="k", progress=_interrupt_at(2, KeyboardInterrupt)))
    epochs: list[int] = []
    learned_values(prepared, LearningRun(checkpoint=file, key="x", progress=lambda epoch, _: epochs.append(epoch)))
    assert epochs[0] == 1


def test_a_damaged_checkpoint_says_so(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "learning.safetensors"
    file.write_bytes(b"no safetensors")
    with pytest.raises(CorruptArtifactError, match="delete it and run the command again"):
        learned_values(prepared, LearningRun(checkpoint=file, key="k"))


def test_saves_are_spaced_but_the_last_is_always_written(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []
    original = checkpoints.flush_checkpoint
    monkeypatch.setattr(
        checkpoints, "flush_checkpoint", lambda path, state: (writes.append(path), original(path, state))
    )
    learned_values(prepared, LearningRun(checkpoint=tmp_path / "c.safetensors", key="k"))
    assert 2 <= len(writes) < prepared.source.recipe.learn.epochs


def test_stages_are_taken_from_their_files_when_nothing_changed(
    prepared: Prepared, toy_clip: LoadedModel, tmp_path: Path
) -> None:
    files = RunFiles(folder=tmp_path / "run")
    first = learn_stage(prepared, files)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = prepare(prepared.source, files)
    second = learn_stage(again, files, progress=lambda *_: pytest.fail("learned again"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    image = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    for left, right in zip(first.classifier(image), second.classifier(image), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


def test_a_changed_recipe_is_learned_again(prepared: Prepared, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path / "run")
    learn_stage(prepared, files)
    epochs: list[int] = []
    learn_stage(with_options(prepared, label_smoothing=0.1), files, progress=lambda epoch, _: epochs.append(epoch))
    assert epochs[0] == 1
