"""The bench of parts: a whole run on tiny data, other heads, its tables, and what of a base head serves new classes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_modules import bench_modules
from torch import Tensor

from p4q_edge.learning import CachedFeatures, LearningRun
from p4q_edge.recipe import demo_recipe
from p4q_edge.stages import hand_written_embeddings, new_student, open_source
from p4q_edge.stages.students import teach

MODULES = ("parts", "parts_rows", "parts_scene", "parts_table", "rivals")
COLOURS = {"orange": (240, 140, 30), "sea": (60, 120, 190), "forest": (30, 90, 40), "rose": (230, 120, 150)}


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with bench_modules(MODULES) as modules:
        yield modules


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar100").mkdir()
    generator = np.random.default_rng(0)
    for name, per_class in (("train", 20), ("test", 5)):
        labels = np.repeat(np.arange(4), per_class)
        noise = generator.integers(-60, 60, (len(labels), 32, 32, 3))
        images = (np.array(list(COLOURS.values()))[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        np.savez(folder / "cifar100" / name, images=images, labels=labels, class_names=np.array(list(COLOURS)))
    return folder


@pytest.mark.slow
def test_a_run_is_written_and_goes_on_where_it_stopped(
    bench: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["zero-shot", "P4Q", "adapter and residual", "residual (TaskRes)", "linear probe", "strict, anchored"]
    rows += ["P4Q, learned teacher, unlabelled images", "P4Q of full precision, moved"]
    rows += ["P4Q, features with noise 0.3", "P4Q, averaged over epochs"]
    words = ["--data", str(data), "--sets", "cifar100", "--seeds", "0", "--widths", "FP32,W8A8", "--steps", "2"]
    words += [
        "--kinds",
        "tested,cross-validated,base-to-new,held-out",
        "--jobs",
        "0",
        "--rows",
        ";".join(rows),
        "--work",
        str(tmp_path / "work"),
        "--output",
        str(tmp_path),
    ]
    assert bench["parts"].main(words) == 0
    (path,) = tmp_path.glob("parts-*.json")
    document = json.loads((tmp_path / "work" / "document.json").read_text())
    assert str(tmp_path) not in path.read_text()
    figures: dict[str, dict[str, Any]] = document["figures"]
    cells = {
        tuple(cell[key] for key in ("kind", "part", "row", "width")): cell
        for cell in json.loads(path.read_text())["cells"]
    }
    ours, other = (cells["tested", "clean", row, "W8A8"]["top1"]["0"] for row in ("P4Q", "zero-shot"))
    assert cells["tested", "clean", "zero-shot", "W8A8"]["over_default"][0] == pytest.approx(other - ours)
    measured = {tuple(name.split("|")[:3]) for name in figures}
    assert {("tested", row, "W8A8") for row in rows} < measured
    assert ("cross-validated", "P4Q", "W8A8") in measured
    assert ("cross-validated", "zero-shot", "W8A8") not in measured
    assert ("base-to-new", "P4Q", "FP32") in measured
    assert ("tested", "P4Q of full precision, moved", "FP32") not in measured
    right = figures["tested|P4Q|W8A8|cifar100|0"]["right"]
    assert {part: len(text) for part, text in right.items()} == dict.fromkeys(
        ("clean", "noise", "blur", "JPEG", "dark"), 20
    )
    assert len(figures["cross-validated|P4Q|W8A8|cifar100|0"]["right"]["cross-validated"]) == 64
    held_out = figures["held-out|P4Q|W8A8|cifar100|0"]["right"]["held out"]
    assert len(held_out) == len(figures["names|FP32|cifar100|0"]["held out"]) == 16
    assert held_out.count("1") / 16 > 0.5  # the true labels: four classes that differ in colour
    assert ("held-out", "P4Q, learned teacher, unlabelled images", "W8A8") not in measured
    assert [len(text) for text in figures["base-to-new|P4Q|FP32|cifar100|0"]["right"].values()] == [10] * 4
    assert "### CIFAR-100: half of the classes learned" in path.with_suffix(".md").read_text()
    before = (tmp_path / "work" / "figures.jsonl").read_text()
    monkeypatch.setattr(bench["parts"], "measure", lambda *_: pytest.fail("measured again"))
    assert bench["parts"].main(words) == 0
    assert (tmp_path / "work" / "figures.jsonl").read_text() == before
    older = [json.loads(line) for line in before.splitlines()]
    for figure in older:
        figure.pop("held out", None)
    (tmp_path / "work" / "figures.jsonl").write_text("".join(json.dumps(figure) + "\n" for figure in older))
    assert bench["parts"].main(words) == 0  # what it kept before images were held out is told again
    assert len(bench["parts"].Figures(tmp_path / "work" / "figures.jsonl").found) == len(figures)


def test_a_cell_that_fails_is_left_out_and_told_of(
    bench: dict[str, ModuleType], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    figures = bench["parts"].Figures(tmp_path / "figures.jsonl")
    pool = bench["parts"].Inline()
    jobs = {pool.submit(int, "x"): "bad", pool.submit(dict, seconds=1): "good"}
    bench["parts"].collect(jobs, figures, float("inf"))
    assert list(figures.found) == ["good"]
    assert "bad failed: ValueError" in caplog.text
    assert bench["parts"].Figures(tmp_path / "figures.jsonl").found == figures.found


def test_noise_is_a_share_of_the_features_and_leaves_the_first_view(bench: dict[str, ModuleType]) -> None:
    seen = torch.full((1, 500, 40), 2.0)
    features = CachedFeatures(student=seen, teacher=3 * seen, labels=torch.zeros(500, dtype=torch.int64))
    noisy = bench["parts_rows"].with_noise(features, 0.3, seed=0)
    assert noisy.student.shape == noisy.teacher.shape == (8, 500, 40)
    assert torch.equal(noisy.student[:1], seen)
    assert float((noisy.student[1:] - 2).std()) == pytest.approx(0.6, rel=0.01)
    assert float((noisy.teacher[1:] - 3 * 2).std()) == pytest.approx(1.8, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [0, 2])
def test_an_averaged_head_is_the_mean_over_the_last_half_of_its_epochs(
    bench: dict[str, ModuleType], alone: int
) -> None:
    recipe = demo_recipe()
    learn = msgspec.structs.replace(recipe.learn, prompts=alone > 0, prompt_steps=alone, epochs=4)
    source = open_source(msgspec.structs.replace(recipe, learn=learn))
    count = len(source.split.train.labels)
    seen = torch.randn(1, count, hand_written_embeddings(source).shape[1], generator=torch.Generator().manual_seed(0))
    features = CachedFeatures(student=seen, teacher=seen, labels=torch.from_numpy(source.split.train.labels))
    values: list[Tensor] = []
    student, _ = new_student(source)
    assert student.class_residual is not None
    run = LearningRun(progress=lambda *_: values.append(student.class_residual.detach().clone()))  # type: ignore[union-attr]
    teach(source, student, features, run)
    averaged = bench["parts_rows"].learn_averaged(source, features)
    torch.testing.assert_close(averaged.class_residual, (values[-2] + values[-1]) / 2)
    assert not torch.allclose(averaged.class_residual, student.class_residual)


@pytest.fixture
def apart() -> dict[str, Tensor]:
    """Features of three classes that lie apart, and text embeddings that tell little."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 16, generator=generator)
    text = F.normalize(centers + 6 * torch.randn(3, 16, generator=generator), dim=-1)
    sets = {"text": text}
    for name, per_class in (("train", 8), ("test", 30)):
        labels = torch.arange(3).repeat_interleave(per_class)
        sets[name] = centers[labels] + 0.5 * torch.randn(len(labels), 16, generator=generator)
        sets[f"{name} labels"] = labels
    return sets


def test_fewer_labelled_images_are_other_figures(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    words = ["--shots", "2", "--work", str(tmp_path), "--sets", ""]
    args = bench["parts"].parse(words)
    place = bench["parts"].place_of(args, "digits")
    assert bench["parts_scene"].scene_recipe("digits", 0, place, "W8A8").data.shots == 2
    assert "--shots" in bench["parts"].command(args)
    few = tmp_path / "shots-2"
    assert bench["parts"].work_of(args) == few
    assert bench["parts"].work_of(bench["parts"].parse(words[2:])) == tmp_path


@pytest.mark.parametrize("name", ["linear_probe", "around the text", "tip_adapter", "lp_plus_plus"])
def test_other_heads_learn_what_the_text_does_not_tell(
    bench: dict[str, ModuleType], apart: dict[str, Tensor], name: str
) -> None:
    rivals = bench["rivals"]
    data = rivals.Labelled(
        features=apart["train"], labels=apart["train labels"], text=apart["text"], scale=20.0, seed=0
    )
    if name == "tip_adapter":
        head = rivals.tip_adapter(data, steps=30)
    elif name == "lp_plus_plus":
        head = rivals.lp_plus_plus(data)
    else:
        head = rivals.linear_probe(data, around_text=name == "around the text")
    share = float((head(apart["test"]).argmax(-1) == apart["test labels"]).float().mean())
    zero_shot = F.normalize(apart["test"], dim=-1) @ apart["text"].T
    assert share > 0.9 > float((zero_shot.argmax(-1) == apart["test labels"]).float().mean())
    assert torch.equal(head(apart["test"]).argmax(-1), head(7 * apart["test"]).argmax(-1))


def test_the_blended_probe_descends_the_gradient_of_its_loss(
    bench: dict[str, ModuleType], apart: dict[str, Tensor]
) -> None:
    embedding, labels, text = F.normalize(apart["train"], dim=-1), apart["train labels"], apart["text"]
    weights = list(itertools.islice(bench["rivals"]._lp_weights(embedding, labels, text), 11))
    prototypes = torch.stack([embedding[labels == label].mean(0) for label in range(3)]).requires_grad_(True)
    multipliers = (250 * (embedding * text[labels]).sum(-1).mean()).expand(3).clone().requires_grad_(True)
    rate = 4 * len(labels) / torch.linalg.eigvalsh(embedding.T @ embedding).max()
    optimizer = torch.optim.SGD([prototypes], lr=float(rate), momentum=0.9)
    for step, weight in enumerate(weights):
        loss = F.cross_entropy(embedding @ (prototypes + multipliers[:, None] * text).T, labels)
        optimizer.zero_grad()
        (pull,) = torch.autograd.grad(loss, multipliers, retain_graph=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == 9:
            with torch.no_grad():
                multipliers -= len(labels) / (4 * (embedding @ text.T).square().sum(0).max()) * pull
        expected = (prototypes + multipliers[:, None] * text).detach()
        torch.testing.assert_close(weight, expected, atol=1e-4, rtol=1e-4)


def test_a_probe_that_is_pulled_hard_stays_where_it_starts(
    bench: dict[str, ModuleType], apart: dict[str, Tensor]
) -> None:
    embedding, text = F.normalize(apart["train"], dim=-1), apart["text"]
    weight = bench["rivals"]._regression(embedding, apart["train labels"], text, scale=5.0, strength=1e4)
    torch.testing.assert_close(weight, text, atol=1e-3, rtol=0)


def figures_of(right: dict[str, str], *, kind: str = "tested", part: str = "clean") -> dict[str, Any]:
    found: dict[str, Any] = {
        f"names|FP32|digits|{seed}": {"tested": [*"abcd"], "labelled": [*"wxyz"], "classes": 2} for seed in (0, 1)
    }
    for key, text in right.items():
        row, width, seed = key.split("|")
        found[f"{kind}|{row}|{width}|digits|{seed}"] = {"right": {part: text}}
    return found


def test_a_gain_counts_an_image_of_several_seeds_once(bench: dict[str, ModuleType]) -> None:
    right = {"P4Q|W8A8|0": "1110", "P4Q|W8A8|1": "1100", "other|W8A8|0": "0110", "other|W8A8|1": "1100"}
    answers = bench["parts_table"].Answers(figures_of(right))
    assert answers.share("tested", "clean", "P4Q", "W8A8", "digits") == pytest.approx(62.5)
    gain, seeds = answers.gain("tested", "clean", ("P4Q", "other"), ("W8A8", "W8A8"), "digits")
    assert (gain.value, gain.n, seeds) == (pytest.approx(12.5), 4, 2)
    assert gain.low <= gain.value <= gain.high
    assert answers.gain("tested", "clean", ("P4Q", "none"), ("W8A8", "W8A8"), "digits") is None


def test_what_is_recovered_is_told_where_there_is_a_loss(bench: dict[str, ModuleType]) -> None:
    moved = bench["parts_rows"].MOVED
    lost = {"P4Q|FP32|0": "1111", f"{moved}|W4A4|0": "0000", "P4Q|W4A4|0": "0000"}
    table = "\n".join(bench["parts_table"].recovered(bench["parts_table"].Answers(figures_of(lost)), "digits"))
    assert "| W4A4 | **-100.00 [-100.00, -100.00]** | +0.00 [+0.00, +0.00] | 0 % |" in table
    back = lost | {"P4Q|W4A4|0": "1111"}
    table = "\n".join(bench["parts_table"].recovered(bench["parts_table"].Answers(figures_of(back)), "digits"))
    assert "| 100 % |" in table
    none = {"P4Q|FP32|0": "1100", f"{moved}|W4A4|0": "1010", "P4Q|W4A4|0": "1111"}
    table = "\n".join(bench["parts_table"].recovered(bench["parts_table"].Answers(figures_of(none)), "digits"))
    assert "no loss that the images show" in table


@pytest.mark.parametrize("kind", ["noise", "blur", "JPEG", "dark"])
def test_corruptions_keep_the_form_and_change_the_pixels(bench: dict[str, ModuleType], kind: str) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (bench["parts_scene"].corrupted(images, kind, seed=1) for _ in range(2))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert torch.equal(first, second)
    assert not torch.equal(first, images)
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    mean = bench["parts_scene"].corrupted(grey, kind, seed=1).float().mean()
    assert float(mean) == pytest.approx(30.0 if kind == "dark" else 100.0, abs=4.0)
