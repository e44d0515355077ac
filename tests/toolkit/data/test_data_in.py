"""What people bring as labelled images and words, and what they are told when it cannot be used."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from p4q_edge.data.augmentation import augment
from p4q_edge.data.few_shot import few_shot, make_split
from p4q_edge.data.image_set import ImageSet, pixels
from p4q_edge.data.readers import read_class_prompts, read_images, read_split, read_words
from p4q_edge.models.load import Batches, LoadedModel, to_batch
from p4q_edge.models.prompts import template_embeddings
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, Recipe
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.inputs import _files
from p4q_edge.runtime.images.labelled import read_class_folders
from p4q_edge.runtime.images.listing import image_files
from p4q_edge.runtime.images.preprocessing import PreprocessSpec
from p4q_edge.runtime.storage.files import sha256_bytes
from p4q_edge.stages.export import data_index
from p4q_edge.stages.pipeline import RunFiles, Source, learn_stage, prepare

SPEC = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def _png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def _write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def _tar(path: Path, *members: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def _npz(path: Path, **arrays: object) -> str:
    whole = {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": np.array([0, 1]),
        "class_names": np.array(["a", "b"]),
    }
    np.savez(path, **(whole | arrays))  # type: ignore[arg-type]
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            _write(tmp_path / "photos" / name / f"{i}.png", _png(40 * label + i))
    return tmp_path / "photos"


# --- folders


def test_hidden_files_and_folders_are_no_images_and_suffixes_may_be_upper_case(photos: Path) -> None:
    _write(photos / "cat" / "._0.png", b"what macOS leaves behind")
    _write(photos / "cat" / ".thumbnails" / "0.png", b"small")
    _write(photos / ".cache" / "0.png", b"no class")
    _write(photos / "cat" / "notes.txt", b"text")
    _write(photos / "cat" / "deeper" / "9.PNG", _png(9))
    names = [f"cat/{i}.png" for i in range(4)] + ["cat/deeper/9.PNG"]
    assert list(read_images(str(photos)).names[:5]) == names
    assert image_files(photos / "cat") == [photos / name for name in names]
    assert len(read_class_folders(photos, class_names=("cat", "dog"), spec=SPEC).labels) == 9
    assert len(_files(photos)) == 9


# --- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.csv", "\ufeffpath,label\ncat/0.png,cat\ndog/0.png,dog\n"),
        ("bare.csv", "\ufeffcat/0.png,cat\ndog/0.png,dog\n"),
        ("UPPER.CSV", "PATH,Label\ncat/0.png,cat\n\n,\ndog/0.png,dog\n"),
        ("other.tsv", "width\tlabel\tpath\n4\tcat\tcat/0.png\n4\tdog\tdog/0.png\n"),
        ("quoted.csv", '"cat/0.png","cat"\r\n"dog/0.png"," dog "\r\n'),
    ],
)
def test_tables_of_many_programs(photos: Path, name: str, text: str) -> None:
    images = read_images(_write(photos / name, text.encode()))
    assert images.names == ("cat/0.png", "dog/0.png")
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,class\ncat/0.png,cat\n", r"has no column 'label'; its header names path, class; expected path and"),
        (b"label,file\ncat,cat/0.png\n", r"has no column 'path'; its header names label, file"),
        (b"path,label\ncat/0.png,cat\ncat/1.png\n", r"line 3: expected path and label, got \['cat/1\.png'\]"),
        (b"path,label\ncat/0.png,\n", "line 2: expected path and label"),
        (b"cat/0.png,cat\ncat/0.png,dog\n", r"line 2: cat/0\.png appears again, after line 1; name it once"),
        (b"cat/0.png,cat\ncat,dog\n", r"line 2: .*cat does not exist; paths are relative"),
        (b"cat/0.png,\xe9t\xe9\n", r"is not UTF-8 \(invalid continuation byte at byte 10\); save it as UTF-8"),
        (b"path,label\n", "has no rows; expected lines of path,label"),
    ],
)
def test_tables_that_cannot_be_used(photos: Path, text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(_write(photos / "t.csv", text))


# --- arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3))}, r"images must be uint8 .* got float64 \(2, 4, 4, 3\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"images must be uint8 .* got uint8 \(2, 3, 4, 4\)"),
        ({"labels": np.array([0.5, 1.0])}, r"labels must be integers, one for each of 2 images, got float64 \(2,\)"),
        ({"labels": np.array([0, 1, 1])}, r"one for each of 2 images, got int64 \(3,\)"),
        ({"labels": np.array([-1, 1])}, r"labels must be between 0 and 1 \(2 class names\), got -1 to 1"),
        ({"class_names": np.array([1, 2])}, r"class_names must be a list of strings, got int64 \(2,\)"),
        ({"class_names": np.array(["a", "a"])}, "class name 'a' appears more than once"),
        ({"class_names": np.array(["a", None], dtype=object)}, "no pickles"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(_npz(tmp_path / "d.npz", **arrays))


def test_damaged_array_files(tmp_path: Path) -> None:
    whole = Path(_npz(tmp_path / "d.npz")).read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for data in (whole[: len(whole) // 2], whole.replace(b"PK\x03\x04", b"PK\x03\x05", 1), single.getvalue()):
        with pytest.raises(InputError, match="needs arrays images, labels and class_names"):
            read_images(_write(tmp_path / "damaged.npz", data))


# --- tars


def test_a_tar_is_read_lazily_and_by_the_rules_of_webdataset(tmp_path: Path) -> None:
    path = _tar(
        tmp_path / "d.TAR",
        ("./train/a.JPG", _png(1)),
        ("train/a.CLS", b"1\n"),
        ("train/a.seg.png", b"a mask, not an image of its own"),
        ("train/._a.jpg", b"what macOS leaves behind"),
        ("train/b.png", _png(2)),
        ("train/b.cls", b"0"),
        ("train/b.json", b"{}"),
        ("classnames.txt", b"\xef\xbb\xbfcat\n\nbig dog\n"),
    )
    images = read_images(path)
    assert images.names == ("train/a", "train/b")
    assert images.class_names == ("cat", "big dog")
    assert images.labels.tolist() == [1, 0]
    assert images.open_image(1).getpixel((0, 0)) == 2
    assert images.read_bytes(0) == _png(1)
    Path(path).rename(tmp_path / "moved.tar")
    with pytest.raises(FileNotFoundError):  # it was not kept in memory
        images.read_bytes(0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/a.png", _png(0)), ("/etc/a.cls", b"0")], r"member '/etc/a\.png' leaves the archive; pack it again"),
        ([("x/../../a.png", _png(0))], r"member 'x/\.\./\.\./a\.png' leaves the archive"),
        ([("a.png", _png(0)), ("a.png", _png(1)), ("a.cls", b"0")], "d.tar: a appears more than once"),
        ([("a.png", _png(0)), ("a.jpg", _png(1)), ("a.cls", b"0")], "d.tar: a appears more than once"),
        ([("a.png", _png(0)), ("a.cls", b"0"), ("a.cls", b"1")], "d.tar: a appears more than once"),
        ([("a.png", _png(0)), ("a.cls", b"0"), ("b.cls", b"0")], "found 1 images, but b has only one"),
        ([("a.png", _png(0)), ("a.cls", b"-1")], r"labels must be between 0 and -1|labels must be between"),
        (
            [("a.png", _png(0)), ("a.cls", b"3"), ("classnames.txt", b"cat")],
            r"between 0 and 0 \(1 class names\), got 3",
        ),
        ([("a.png", _png(0)), ("a.cls", b"cat")], "is not an uncompressed webdataset tar"),
        ([("a.png", _png(0)), ("a.cls", b"0"), ("classnames.txt", b"\xff")], "is not an uncompressed webdataset tar"),
        ([("a.txt", b"0")], r"every KEY\.jpg needs a KEY\.cls with its class index; found 0 images$"),
    ],
)
def test_tars_that_cannot_be_used(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(_tar(tmp_path / "d.tar", *members))


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    plain = Path(_tar(tmp_path / "plain.tar", ("a.png", _png(0)), ("a.cls", b"0"))).read_bytes()
    with pytest.raises(InputError, match="is not an uncompressed webdataset tar"):
        read_images(_write(tmp_path / "d.tar", gzip.compress(plain)))


def test_a_damaged_image_in_a_tar_is_named(tmp_path: Path) -> None:
    images = read_images(_tar(tmp_path / "d.tar", ("a.png", b"no image"), ("a.cls", b"0")))
    with pytest.raises(InputError, match=r"d\.tar, a: image of 8 bytes is none of JPEG"):
        pixels(images, SPEC)


# --- words


def test_words_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_words(_write(tmp_path / "n.TXT", b"\xef\xbb\xbfcat\ndog\n"), key="k") == ("cat", "dog")
    assert read_words(_write(tmp_path / "n.json", b'\xef\xbb\xbf["cat"]'), key="k") == ("cat",)
    prompts = read_class_prompts(_write(tmp_path / "p.json", b'\xef\xbb\xbf{"cat": ["a cat"]}'), ("cat", "dog"))
    assert prompts == {"cat": ("a cat",)}


def test_words_that_are_not_utf8(tmp_path: Path) -> None:
    path = _write(tmp_path / "n.txt", b"\xe9t\xe9\n")
    with pytest.raises(InputError, match=r"data\.templates: .*n\.txt is not UTF-8 .* at byte 0\); save it as UTF-8"):
        read_words(path, key="data.templates")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_class_prompts(path)


def test_an_empty_word(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold a list of strings"):
        read_words(_write(tmp_path / "n.json", b'["cat", " "]'), key="k")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"cat": "a cat"}, r"is not of the form .*Expected `array`, got `str`"),
        ({"cat": []}, r"is not of the form .*length >= 1"),
        ({"cat": [3]}, r"is not of the form .*Expected `str`, got `int`"),
        ({"cat": [""]}, r"is not of the form .*length >= 1"),
        ({"cats": ["a cat"]}, "has prompts of 'cats', which is no class; did you mean 'cat'?"),
    ],
)
def test_class_prompts_that_cannot_be_used(tmp_path: Path, document: object, message: str) -> None:
    path = _write(tmp_path / "p.json", json.dumps(document).encode())
    with pytest.raises(InputError, match=message):
        read_class_prompts(path, ("cat", "dog"))


def test_a_class_without_any_prompt(toy_clip: LoadedModel) -> None:
    with pytest.raises(UsageError, match="class 'dog' has no prompt; set data.templates"):
        template_embeddings(
            toy_clip.clip.encode_text,
            toy_clip.tokenizer,
            ("cat", "dog"),
            templates=(),
            class_prompts={"cat": ("a cat",)},
        )


# --- classes


def _values(images: ImageSet, name: str) -> set[int]:
    label = images.class_names.index(name)
    return {int(images.open_image(int(i)).getpixel((0, 0))) for i in np.flatnonzero(images.labels == label)}


def test_the_same_class_names_in_another_order_keep_their_images(photos: Path) -> None:
    split = read_split(DataSection(train=str(photos), class_names=("dog", "cat"), shots=2), seed=0)
    assert split.train.class_names == split.test.class_names == ("dog", "cat")
    for images in (split.train, split.test):
        assert _values(images, "cat") < {0, 1, 2, 3}
        assert _values(images, "dog") < {40, 41, 42, 43}


def test_other_words_name_the_classes_in_order(photos: Path) -> None:
    split = read_split(DataSection(train=str(photos), class_names=("cat", "puppy"), shots=2), seed=0)
    assert _values(split.test, "puppy") < {40, 41, 42, 43}


def test_a_name_of_another_class_is_an_error(photos: Path) -> None:
    with pytest.raises(InputError, match="class 'cat' is number 0 of .*photos and number 1 of the names"):
        read_split(DataSection(train=str(photos), class_names=("kitten", "cat"), shots=2), seed=0)


def test_a_label_that_is_not_in_the_class_names(photos: Path) -> None:
    with pytest.raises(InputError, match="3 class names were given for 2 classes .*; 'dog' is not among the names"):
        read_split(DataSection(train=str(photos), class_names=("cat", "cow", "hen"), shots=2), seed=0)


def test_test_images_follow_the_names_of_their_classes(photos: Path, tmp_path: Path) -> None:
    images = np.stack([np.full((4, 4), value, np.uint8) for value in (200, 100)])
    names = np.array(["dog", "cat"])  # not in the order of the training folders
    test = _npz(tmp_path / "test.npz", images=images, labels=np.array([0, 1]), class_names=names)
    for words in ((), ("tabby", "hound")):
        split = read_split(DataSection(train=str(photos), test=test, class_names=words, shots=2), seed=0)
        assert _values(split.test, (words or ("cat", "dog"))[0]) == {100}


# --- large data


def test_batches_are_made_one_at_a_time(toy_pixels: torch.Tensor) -> None:
    batches = Batches(images=toy_pixels, spec=SPEC, size=7)
    for _ in range(2):  # as often as asked for
        assert torch.equal(torch.cat(list(batches)), to_batch(toy_pixels, SPEC))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]


def test_views_do_not_depend_on_how_many_are_made_at_once(
    toy_pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = augment(toy_pixels, generator=torch.Generator().manual_seed(0), flip=True)
    monkeypatch.setattr("p4q_edge.data.augmentation.AUGMENT_BATCH_SIZE", 5)
    parts = augment(toy_pixels, generator=torch.Generator().manual_seed(0), flip=True)
    assert torch.equal(parts, whole)


def test_only_learned_images_become_pixels_and_the_bundle_lists_them(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    opened: list[int] = []
    images = toy_images(50)

    def watched(index: int) -> Image.Image:
        opened.append(index)
        return images.open_image(index)

    source = _source(toy_clip, replace(images, open_image=watched))
    learned = learn_stage(prepare(source, RunFiles(folder=tmp_path)), None)
    drawn = few_shot(images, shots=2, seed=3)
    assert opened == drawn
    assert data_index(learned) == {
        "learned": [
            {"name": f"toy[{i}]", "label": int(images.labels[i]), "sha256": sha256_bytes(images.read_bytes(i))}
            for i in drawn
        ],
        "prompts": {name: f"a photo of a {name}." for name in images.class_names},
        "test_images": 192,
        "float_bytes": 4 * sum(weight.numel() for weight in toy_clip.clip.get_submodule("visual").parameters()),
    }


def _source(toy: LoadedModel, images: ImageSet) -> Source:
    split = make_split(images, None, shots=2, seed=3, test_limit=0)
    model, data = ModelSection(name="toy"), DataSection(train="toy", shots=2)
    return Source(
        recipe=Recipe(seed=3, model=model, data=data, learn=LearnSection(epochs=1)),
        model=toy,
        split=split,
        templates=("a photo of a {}.",),
        class_prompts={},
        train_digests=tuple(split.train.digests()),
    )
