"""The tool that pre-trains the CLIP of photographs, on three classes of plain colours."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from p4q_edge.runtime.errors import InputError, UsageError

TOOLS = Path(__file__).parents[3] / "tools"
CLASSES = {"n01443537": (220, 40, 40), "n02123045": (40, 220, 40), "n04366367": (40, 40, 220)}
NAMES = {
    "n01443537": "goldfish, Carassius auratus",
    "n02123045": "tabby, tabby cat",
    "n04366367": "suspension bridge",
}
COLUMNS, ROWS = 20, 2
WEIGHTS_BYTES = 12_000_000


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("train_photo_clip", TOOLS / "train_photo_clip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_photo_clip"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheets")
    lines = []
    for wnid, colour in CLASSES.items():
        sheet = np.tile(np.array(colour, dtype=np.uint8), (32 * ROWS, 32 * COLUMNS, 1))
        sheet[:32, 32:64] = 128  # the second tile
        Image.fromarray(sheet).save(folder / f"{wnid}.jpg", quality=95)
        lines.append(f"{wnid}\t{NAMES[wnid]}\t{ROWS * COLUMNS}\n")
    (folder / "classes.tsv").write_text("".join(lines))
    return folder


@pytest.fixture
def settings(tool: ModuleType) -> object:
    return tool.Training(batch=12, words_per_step=4, held_out_per_class=8, minutes=1e9, warmup=1e-12, ema_decay=0.5)


def make_run(tool: ModuleType, data: Path, settings: object) -> object:
    return tool.Run(tool.read_photos(data, held_out_per_class=8), settings)


def test_sheets_are_cut_in_reading_order_and_their_end_is_held_out(tool: ModuleType, data: Path) -> None:
    photos = tool.read_photos(data, held_out_per_class=8)
    assert photos.train_images.shape == (3 * 32, 3, 32, 32)
    assert photos.held_out_images.shape == (3 * 8, 3, 32, 32)
    assert photos.train_labels.bincount().tolist() == [32] * 3
    assert photos.held_out_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    middle = photos.train_images[:, :, 16, 16].float()
    for number, colour in enumerate(CLASSES.values()):
        assert (middle[32 * number] - torch.tensor(colour)).abs().max() < 12  # JPEG
        assert (middle[32 * number + 1] - 128).abs().max() < 12


def test_data_without_a_class_list_names_what_is_expected(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        tool.read_photos(tmp_path, held_out_per_class=1)
    assert str(caught.value) == (
        f"{tmp_path / 'classes.tsv'} is missing: --data takes a folder of contact sheets with its classes.tsv"
    )


def test_class_without_words_names_the_file_to_edit(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "classes.tsv").write_text("n00000000\tunicorn\t1\n")
    with pytest.raises(InputError) as caught:
        tool.read_photos(tmp_path, held_out_per_class=1)
    assert str(caught.value) == (
        f"{TOOLS / 'photo_classes.tsv'} has no line for n00000000 (unicorn): add its coarser words and look-alikes"
    )


def test_captions_of_a_class_use_its_names_and_words_only(tool: ModuleType, data: Path) -> None:
    captions = tool.build_captions(tool.read_photos(data, held_out_per_class=8).classes)
    tokenizer = open_clip.SimpleTokenizer()
    generator = torch.Generator().manual_seed(0)
    seen: list[set[str]] = [set(), set(), set()]
    for _ in range(200):
        tokens, drawn = captions.draw(4, generator)
        assert len(tokens) == 3 + len(drawn) == 7
        for texts, row in zip(seen, tokens[:3], strict=True):
            ids = captions.used_tokens[row]
            end = int(ids.argmax())
            texts.add(tokenizer.decode(ids[1:end].tolist()).strip())
    assert "a photo of a goldfish ." in seen[0]
    assert "a photo of a goldfish , a fish ." in seen[0]
    assert all("goldfish" in text or "carassius auratus" in text for text in seen[0])
    assert all("tabby" in text for text in seen[1])
    assert all("suspension bridge" in text for text in seen[2])
    torch.testing.assert_close(captions.word_target.sum(1), torch.ones(3))


def test_every_word_has_an_article(tool: ModuleType) -> None:
    assert f"{tool.Thing('orange')}" == "an orange"
    assert "the {.noun}".format(tool.Thing("orange")) == "the orange"
    assert f"{tool.Thing('lemon')}" == "a lemon"


def test_cut_captions_encode_as_whole_ones(tool: ModuleType) -> None:
    config = {**tool.MODEL_CFG, "vision_cfg": {**tool.MODEL_CFG["vision_cfg"], "layers": 1}}
    model = open_clip.CLIP(**config).eval()
    tokens = open_clip.SimpleTokenizer(context_length=tool.CONTEXT)(["a photo of a goldfish.", "bridge"])
    with torch.no_grad():
        whole, cut = model.encode_text(tokens), tool.encode_text(model, tokens[:, :9])
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_token_dropout_keeps_the_class_token_and_whole_patches(tool: ModuleType) -> None:
    dropout = tool.TokenDropout(torch.Generator().manual_seed(0))
    x = torch.arange(65.0).repeat(5, 1)[:, :, None].expand(-1, -1, 2)  # each token is its number
    assert dropout(x) is x
    dropout.share = 0.5
    kept = dropout(x)
    assert kept.shape == (5, 33, 2)
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 33 for row in kept[:, :, 0])
    assert not torch.equal(kept[0], kept[1])


def test_views_come_from_the_generator_alone(tool: ModuleType) -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    first, again, other = (tool.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    black, white = (tool.normalize(torch.full((1, 3, 1, 1), value)) for value in (0.0, 1.0))
    assert (first >= black - 1e-5).all()
    assert (first <= white + 1e-5).all()


@pytest.mark.slow
def test_a_short_training_learns_the_colours(tool: ModuleType, data: Path, settings: object) -> None:
    run = make_run(tool, data, settings)
    first = run.step()["by_name"]
    for _ in range(14):
        last = run.step()["by_name"]
    assert last < 0.7 * first
    measured = tool.measure(run, None)["held_out"]
    assert measured["n"] == 24
    assert measured["top1"] > 60


@pytest.mark.slow
def test_a_resumed_run_takes_the_same_next_step(tool: ModuleType, data: Path, settings: object, tmp_path: Path) -> None:
    run = make_run(tool, data, settings)
    run.step()
    run.save(tmp_path / "checkpoint.pt")
    resumed = make_run(tool, data, settings)
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.steps == 1
    assert resumed.minutes == run.minutes
    assert resumed.step() == run.step()
    for ours, theirs in zip(run.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_other_settings_is_refused(
    tool: ModuleType, data: Path, settings: object, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    make_run(tool, data, settings).save(path)
    other = make_run(tool, data, tool.Training(batch=24, held_out_per_class=8))
    with pytest.raises(UsageError) as caught:
        other.load(path)
    assert str(caught.value) == f"{path} was made with other settings: give the same options, or delete it"


def test_shipped_model_has_the_whole_vocabulary(tool: ModuleType, data: Path, settings: object) -> None:
    run = make_run(tool, data, settings)
    run.step()
    model = tool.full_model(run)
    tokens = open_clip.SimpleTokenizer(context_length=tool.CONTEXT)(["a photo of a goldfish."])
    compact = torch.searchsorted(run.captions.used_tokens, tokens[:, :8].contiguous())
    with torch.no_grad():
        expected = tool.encode_text(run.average.module.eval(), compact)
        torch.testing.assert_close(model.encode_text(tokens), expected, rtol=1e-4, atol=1e-5)
    rows = model.token_embedding.weight.abs().sum(1).nonzero().flatten()
    assert torch.equal(rows, run.captions.used_tokens)


def test_schedule_rises_then_falls_to_zero(tool: ModuleType) -> None:
    values = [tool.schedule(step / 100, 0.1) for step in range(101)]
    assert values[0] < 0.02
    assert max(values) == pytest.approx(1, abs=0.02)
    assert values[-1] == 0
    assert values[10:] == sorted(values[10:], reverse=True)


def test_words_cover_each_class_once(tool: ModuleType) -> None:
    lines = (TOOLS / "photo_classes.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert {len(row) for row in rows} == {3}
    assert len({row[0] for row in rows}) == len(rows) == 200
    assert all(word == word.strip() and word for row in rows for part in row[1:] for word in part.split(", "))


def test_shipped_weights_load_and_say_that_they_are_for_research_only(tool: ModuleType) -> None:
    folder = TOOLS / "bench" / "photo_clip"
    assert (folder / tool.WEIGHTS_NAME).stat().st_size < WEIGHTS_BYTES
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    assert config["license"].startswith("research-only")
    assert config["model_cfg"] == tool.MODEL_CFG
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for measured in config["provenance"]["measured"].values():
        assert f"| {measured['top1']:.2f} % | {measured['top5']:.2f} % | {measured['n']:,} |" in readme
    model = open_clip.create_model(f"local-dir:{folder}", precision="fp32").eval()
    colours = {"orange": (240, 140, 30), "sea": (60, 120, 190)}  # plain, but telling enough
    prompts = open_clip.SimpleTokenizer(context_length=tool.CONTEXT)(list(map("a photo of the {}.".format, colours)))
    images = torch.tensor(list(colours.values()))[:, :, None, None].expand(-1, -1, 32, 32)
    with torch.no_grad():
        image = model.encode_image(tool.normalize(images / 255), normalize=True)
        similarity = image @ model.encode_text(prompts, normalize=True).T
    assert similarity.argmax(1).tolist() == [0, 1]
